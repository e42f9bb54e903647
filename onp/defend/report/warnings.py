"""What must be known before a report is acted upon: each warning's condition and its sentence."""

from __future__ import annotations

from scipy.special import bdtrc
from torch import Tensor

from onp.data.images import ImageSet
from onp.defend.decision import REPAIRS, Decision
from onp.defend.report.sentences import surviving_families
from onp.defend.verdict import WEAK_TRIGGER, Findings
from onp.engine.metrics import Share
from onp.errors import first_few
from onp.model.checkpoint import Checkpoint

FEW_IMAGES, FEW_CLASSES = 200, 6  # below which detection is called weak
CLASS_LOSS, LEVEL = 0.03, 0.01  # accuracy a class must have lost to be named, and the level of the test over all classes


def warning(findings: Findings, clean: ImageSet, max_acc_drop: float) -> str | None:
    """All warnings of a run, one after another; None where there are none.

    Args:
        findings: of the run.
        clean: all clean images that were given.
        max_acc_drop: the accuracy budget, a share.
    """
    audit = findings.audit
    before, after, evaluation = audit.before, audit.after, audit.data.evaluation.images
    measured, classes = audit.data.measured, before.probabilities.shape[1]
    sentences = (
        surviving_families(findings.survivors) if findings.decision == "partly-repaired" else None,
        None if findings.missed is None else missed_trigger(findings.missed),
        None if findings.outlived is None else outlived_repair(findings.outlived),
        None if before.asr is None or findings.verification is not None else weak_trigger(before.asr),
        over_budget(before.acc, after.acc, max_acc_drop),
        class_accuracy_loss(before.probabilities.argmax(1), after.probabilities.argmax(1), measured),
        None if findings.detection is None else few_images(len(clean), classes),
        None if evaluation is None else evaluation_overlap(clean, evaluation),
    )
    return " ".join(sentence for sentence in sentences if sentence) or None


def missed_trigger(asr: Share) -> str:
    """Warn where the scan found nothing and the attacker's trigger, given for measuring, works."""
    return (
        f"The trigger given for measuring works on {100 * asr.value:.1f} % of the images (n = {asr.n}), and the scan, which "
        "never sees it, found no class: the decision is no answer about that trigger."
    )


def outlived_repair(asr: Share) -> str:
    """Warn where the attacker's trigger, given for measuring, still works on the repaired network."""
    return (
        f"The trigger given for measuring still works on {100 * asr.value:.1f} % of the images (n = {asr.n}) after the repair; "
        "repair the original for that trigger with --trigger or --triggered-data."
    )


def weak_trigger(asr: Share) -> str | None:
    """Warn where the attacker's trigger, given for measuring, hardly works on the network as given."""
    if asr.value >= WEAK_TRIGGER:
        return None
    return (
        f"On the original model the trigger given for measuring has an ASR of only {100 * asr.value:.1f} %: it is not the "
        "trigger of this model, or the images do not carry it, so ASR, RA and DER mean nothing here."
    )


def few_images(images: int, classes: int) -> str | None:
    """Warn where there are too few images, or too few classes to tell how much one of them differs from the others."""
    few = [f"{count} {what}" for count, least, what in ((images, FEW_IMAGES, "clean images"), (classes, FEW_CLASSES, "classes"))
           if count < least]  # fmt: skip
    if not few:
        return None
    advice = f"give at least {FEW_IMAGES} images" if images < FEW_IMAGES else "treat the decision as a hint"
    return f"With only {' and '.join(few)} a class can look like a target by chance; {advice}."


def over_budget(before: Share, after: Share, max_acc_drop: float) -> str | None:
    """Warn where the loss of accuracy on held-out images exceeds the budget."""
    lost = before.value - after.value
    if lost <= max_acc_drop + 1e-9:
        return None
    return (
        f"On held-out images the repair lost {100 * lost:.1f} points of accuracy (n = {after.n}), more than the budget of "
        f"{100 * max_acc_drop:g}; give more clean images or lower --max-acc-drop."
    )


def evaluation_overlap(clean: ImageSet, evaluation: ImageSet) -> str | None:
    """Warn where a tenth or more of the evaluation images were also given for the repair."""
    given = {image.tobytes() for image in clean.images.numpy()}
    shared = sum(image.tobytes() in given for image in evaluation.images.numpy())
    if shared < len(evaluation) / 10:
        return None
    return (
        f"{shared} of the {len(evaluation)} images of --eval-data are also in --data, so the figures are too optimistic; "
        "evaluate on other images."
    )


def class_accuracy_loss(before: Tensor, after: Tensor, measured: ImageSet) -> str | None:
    """Warn of the class that lost most accuracy, where more of its images became wrong than right than chance explains.

    Args:
        before: predicted classes int64 `[N]` of the images `measured`, by the original network.
        after: the same by the repaired one.
        measured: the images of the ACC.
    """
    right, still = before == measured.labels, after == measured.labels
    classes = measured.labels.unique().tolist()
    worst = None
    for k in classes:
        own = measured.labels == k
        lost, won, n = int((right & ~still & own).sum()), int((~right & still & own).sum()), int(own.sum())
        # The sign test: as many losses or more where gains are as likely.
        if lost - won < CLASS_LOSS * n or bdtrc(lost - 1, lost + won, 0.5) >= LEVEL / len(classes):
            continue
        if worst is None or (lost - won) / n > worst[0]:
            worst = (lost - won) / n, k, Share(int((right & own).sum()), n), Share(int((still & own).sum()), n)
    if worst is None:
        return None
    _, k, old, new = worst
    return (
        f"The accuracy of class {measured.name(k)} fell from {100 * old.value:.1f} % to {100 * new.value:.1f} % (n = {old.n}): "
        "the pruned units also supported that class."
    )


def further_copies(checkpoint: Checkpoint | None, decision: Decision) -> tuple[str, ...]:
    """What became of further copies of the weights in the checkpoint, in a sentence; empty where there are none."""
    if checkpoint is None or not checkpoint.copies:
        return ()
    copies = first_few(map(str, checkpoint.copies))
    if decision in REPAIRS:
        return (f"The checkpoint holds the weights more than once ({copies}): the repaired weights replace all copies.",)
    place = "/".join(checkpoint.copies[0].place)
    advice = f"; to scan it, give --model {checkpoint.path}::{place}" if place else ""
    return (f"The checkpoint holds the weights more than once, and {copies} was not scanned{advice}.",)
