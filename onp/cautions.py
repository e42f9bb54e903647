"""What a report warns of."""

from __future__ import annotations

from scipy.stats import binomtest
from torch import Tensor

from onp.audit import Figures
from onp.data import ImageSet
from onp.metrics import Share

FEW_IMAGES, FEW_CLASSES = 200, 6  # below which the evidence is called weak
PAYS, LEVEL = 0.03, 0.01  # accuracy a class must have lost to be named, and the level of the test over all classes


def warning(
    before: Figures, after: Figures, measured: ImageSet, max_acc_drop: float, looked_at: tuple[int, int] | None
) -> str | None:
    """All that must be known before the verdict is acted upon; None where there is nothing.

    measured: the images of the ACC. looked_at: the numbers of images and of classes that gave evidence; None where the trigger
    was known.
    """
    found = (
        over_budget(before.acc, after.acc, max_acc_drop),
        paying(before.probabilities, after.probabilities, measured),
        little_seen(*looked_at) if looked_at is not None else None,
    )
    return " ".join(sentence for sentence in found if sentence) or None


def little_seen(images: int, classes: int) -> str | None:
    """A sentence where the images are few, or the classes too few to tell how much one of them differs from the others."""
    few = [f"{count} {what}" for count, least, what in ((images, FEW_IMAGES, "clean images"), (classes, FEW_CLASSES, "classes"))
           if count < least]  # fmt: skip
    if not few:
        return None
    wanted = f"give {FEW_IMAGES} or more" if images < FEW_IMAGES else "take it as a hint"
    return f"With {' and '.join(few)} the evidence is weak, and a class can stand out without a backdoor; {wanted}."


def over_budget(before: Share, after: Share, max_acc_drop: float) -> str | None:
    """A sentence where images that the search never saw lost more accuracy than allowed; None where they did not."""
    lost = before.value - after.value
    if lost <= max_acc_drop + 1e-9:
        return None
    return (
        f"Images that the search never saw lost {100 * lost:.1f} points of accuracy (n = {after.n}), more than the allowed "
        f"{100 * max_acc_drop:g}; give more clean images or lower --max-acc-drop."
    )


def paying(before: Tensor, after: Tensor, measured: ImageSet) -> str | None:
    """A sentence on the class that lost most accuracy, where more of its images became wrong than right than chance explains.

    before, after: probabilities `[N, classes]` of the images `measured`.
    """
    right, still = before.argmax(1) == measured.labels, after.argmax(1) == measured.labels
    classes = measured.labels.unique().tolist()
    worst = None
    for k in classes:
        own = measured.labels == k
        lost, won, n = int((right & ~still & own).sum()), int((~right & still & own).sum()), int(own.sum())
        if lost - won < PAYS * n or binomtest(lost, lost + won, alternative="greater").pvalue >= LEVEL / len(classes):
            continue
        if worst is None or (lost - won) / n > worst[0]:
            worst = (lost - won) / n, k, Share(int((right & own).sum()), n), Share(int((still & own).sum()), n)
    if worst is None:
        return None
    _, k, old, new = worst
    return (
        f"Class {measured.name(k)} pays for the repair: {100 * new.value:.1f} % of its images are right, "
        f"{100 * old.value:.1f} % were before (n = {old.n})."
    )
