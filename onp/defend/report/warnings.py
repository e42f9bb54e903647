"""What a report warns of."""

from __future__ import annotations

from scipy.stats import binomtest
from torch import Tensor

from onp.data.images import ImageSet
from onp.defend.inputs import Case
from onp.defend.report.audit import Figures
from onp.engine.metrics import Share
from onp.model.checkpoint import Checkpoint
from onp.model.state_dicts import some

FEW_IMAGES, FEW_CLASSES = 200, 6  # below which the evidence is called weak
HARDLY = 0.2  # ASR below which a trigger is no trigger
PAYS, LEVEL = 0.03, 0.01  # accuracy a class must have lost to be named, and the level of the test over all classes


def warning(before: Figures, after: Figures, case: Case, max_acc_drop: float) -> str | None:
    """All that must be known before the verdict is acted upon; None where there is nothing."""
    measured = case.splits.holdout if case.evaluation is None else case.evaluation
    found = (
        hardly_triggered(before),
        over_budget(before.acc, after.acc, max_acc_drop),
        paying(before.probabilities, after.probabilities, measured),
        little_seen(len(case.clean), case.victim.classes) if case.known is None else None,
        measured_twice(case.clean, case.evaluation) if case.evaluation is not None else None,
    )
    return " ".join(sentence for sentence in found if sentence) or None


def hardly_triggered(before: Figures) -> str | None:
    """A sentence where what is said to be the attacker's trigger hardly works on the network as given."""
    if before.asr is None or before.asr.value >= HARDLY:
        return None
    return (
        f"On the model as given the trigger leads only {100 * before.asr.value:.1f} % of the images to one class: it is not "
        "this model's, or the images do not carry it, and ASR, RA and DER say nothing."
    )


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


def measured_twice(clean: ImageSet, evaluation: ImageSet) -> str | None:
    """A sentence where the repair was given a tenth or more of the images that it is measured on."""
    given = {image.tobytes() for image in clean.images.numpy()}
    both = sum(image.tobytes() in given for image in evaluation.images.numpy())
    if both < len(evaluation) / 10:
        return None
    return (
        f"{both} of the {len(evaluation)} images of --eval-data are among those of --data, so that the figures flatter the "
        "repair; give others."
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


def further_copies(checkpoint: Checkpoint | None, decision: str) -> tuple[str, ...]:
    """What became of further copies of the weights in the checkpoint, in a sentence; empty where there are none."""
    if checkpoint is None or not checkpoint.copies:
        return ()
    copies = some(map(str, checkpoint.copies))
    if decision == "repaired":
        return (f"The checkpoint holds the weights more than once ({copies}): the repaired ones stand in place of all copies.",)
    deeper = "/".join(checkpoint.copies[0].place)
    ask = f"; --model {checkpoint.path}::{deeper} asks about it" if deeper else ""
    return (f"The checkpoint holds the weights more than once, and {copies} was not looked at{ask}.",)
