"""What a report warns of."""

from __future__ import annotations

from scipy.stats import binomtest
from torch import Tensor

from onp.audit import Figures
from onp.data import ImageSet
from onp.metrics import Share

PAYS, LEVEL = 0.03, 0.01  # accuracy a class must have lost to be named, and the level of the test over all classes


def warning(before: Figures, after: Figures, measured: ImageSet, max_acc_drop: float) -> str | None:
    """All that must be known before the repaired model is used, from the images of the ACC; None where there is nothing."""
    found = over_budget(before.acc, after.acc, max_acc_drop), paying(before.probabilities, after.probabilities, measured)
    return " ".join(sentence for sentence in found if sentence) or None


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
