"""The prose of a report: headline, reason, notes on other classes, and what to do next.

The warnings' sentences stand beside their conditions, in warnings.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onp.data.images import ImageSet
from onp.defend.decision import Decision
from onp.defend.repair_loop import Repairs
from onp.detect.anomaly import DetectionScores
from onp.detect.config import SECOND_PASS_STEPS
from onp.detect.targets import Detection

HEADLINES: dict[Decision, str] = {
    "repaired": "A backdoor was detected, and the model was repaired.",
    "no-backdoor-evidence": "No evidence of a backdoor was found.",
    "not-repairable": "A backdoor was detected, but the model could not be repaired.",
}

NEXT_STEPS: dict[Decision, tuple[str, ...]] = {
    "repaired": (
        "Read the warning, if there is one, and compare the surrogate ASR after the repair with the ASR without a trigger: "
        "the closer the two, the more complete the repair.",
        "Use the repaired checkpoint in place of the original; architecture, tensor names and shapes are the same. Measure it "
        "on your own test images first, by class.",
        "If you know the attacker's trigger or have images that carry it, measure with --eval-trigger or "
        "--eval-triggered-data; to repair for exactly that trigger, use --trigger or --triggered-data.",
        "Do not take a second scan of the repaired checkpoint for a test: pruning changes the batch-norm statistics that two "
        "of the detectors compare.",
        "Keep the original checkpoint and this report, and tell whoever supplied the model.",
    ),
    "no-backdoor-evidence": (
        "The absence of evidence is no proof. If the highest detection score is close to the threshold, run again with "
        "--preset thorough, with other seeds or with more clean images.",
        "If you have images that you think carry a trigger, give them with --triggered-data: a known trigger needs no "
        "detection.",
        "Nothing was written except this report; the model can be used as it is.",
    ),
    "not-repairable": (
        "Do not deploy this model. Where the reason above names a larger --max-acc-drop, a repair exists that costs up to "
        "that much accuracy.",
        "More clean images, or --preset thorough, give the search more to work with.",
        "If you have the attacker's trigger or images that carry it, give them with --trigger or --triggered-data.",
        "Otherwise train the model again from data you trust, and tell whoever supplied it.",
    ),
}


def reason(detection: Detection | None, repairs: Repairs | None, images: ImageSet, max_acc_drop: float) -> str:
    """Why the decision was taken.

    Args:
        detection: None where the trigger was given.
        repairs: None where no class reached the threshold.
        images: whose class names to use.
        max_acc_drop: the accuracy budget, a share.
    """
    if repairs is None:
        assert detection is not None
        scores, highest = detection.scores, detection.scores.predicted_target
        return (
            f"No class reaches the detection threshold of {detection.config.threshold:g}: the highest score is "
            f"{scores.score[highest]:.1f}, of class {images.name(highest)}. The model was not changed."
        )
    targets = [repair.target for repair in repairs.repairs]
    found = _found(detection, targets, images)
    if repairs.works:
        count = int((~repairs.mask.keep).sum())
        return f"{found}; {count} {'unit was' if count == 1 else 'units were'} pruned to remove it."
    *done, last = (images.name(k) for k in targets)
    first = f"A mask was found for class {' and '.join(done)}, but none for class {last}: no" if done else "No"
    asr = float(repairs.repairs[-1].search.outcome.asr)
    return (
        f"{found}. {first} pruning mask within the accuracy budget of {100 * max_acc_drop:g} points removes most of the "
        f"backdoor; the best one leaves an ASR of {100 * asr:.0f} % on the images that masks are scored on. The model was not "
        f"changed.{budget_advice(repairs, max_acc_drop)}"
    )


def budget_advice(repairs: Repairs, max_acc_drop: float) -> str:
    """Which larger accuracy budget would have allowed a mask that works.

    Empty where the search met no such mask, and where earlier repairs had spent a part of the budget.
    """
    required = repairs.repairs[-1].search.required_budget
    share = 0.0 if required is None else math.ceil(200 * required - 1e-3) / 200
    if len(repairs.repairs) > 1 or not max_acc_drop < share < 1:
        return ""
    return f" --max-acc-drop {share:g} would allow a mask that removes at least half of the ASR."


def notes(detection: Detection | None, repairs: Repairs | None, images: ImageSet) -> tuple[str, ...]:
    """What was measured of classes beside the first target, one sentence each; empty where no other class matters."""
    if detection is None:
        return ()
    threshold = detection.config.threshold
    reached = detection.first.over(threshold)
    if detection.second is None:
        if len(reached) < 2 or repairs is None or not repairs.works:
            return ()
        return (
            f"Also above the threshold, but far below the repaired class: {_scores(reached[1:], detection.first, images)}. Not "
            "repaired; a class that far below is usually close to the target in feature space, but it can be a second target.",
        )
    sentences = [
        f"Ambiguous detection: {_scores(reached, detection.first, images)} "
        f"{'have similar scores' if len(reached) > 1 else 'is close to the threshold'}. All classes were scored again with "
        f"{SECOND_PASS_STEPS:g} times the inversion steps: {_scores(reached, detection.second, images)}."
    ]
    if repairs is not None:
        left = list(detection.targets[1:])
        for repair, scores in zip(repairs.repairs, repairs.scores_after, strict=False):
            still = [k for k in scores.over(threshold) if k in left]
            next_step = f"{images.name(still[0])} was repaired next" if still else "no further class was repaired"
            name = images.name(repair.target)
            sentences.append(f"Scores on the network repaired for class {name}: {_scores(left, scores, images)}; {next_step}.")
            left = still[1:]
    return tuple(sentences)


def _found(detection: Detection | None, classes: Sequence[int], images: ImageSet) -> str:
    """Which classes are targets, and how that is known."""
    if detection is None:
        return f"The given trigger leads to class {images.name(classes[0])}"
    threshold = f"threshold {detection.config.threshold:g}"
    if len(classes) == 1:
        score = detection.scores.score[classes[0]]
        return f"Class {images.name(classes[0])} was detected as the target of a backdoor (score {score:.1f}, {threshold})"
    return f"Several classes were detected as backdoor targets: {_scores(classes, detection.scores, images)}, {threshold}"


def _scores(classes: Sequence[int], scores: DetectionScores, images: ImageSet) -> str:
    return ", ".join(f"{images.name(k)} ({scores.score[k]:.1f})" for k in classes)
