"""The prose of a report: headline, reason, and notes on other classes.

What to do next is in advice.py; the warnings' sentences stand beside their conditions, in warnings.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onp.data.images import ImageSet
from onp.defend.config import DefendConfig
from onp.defend.repair_loop import Repairs
from onp.defend.report.advice import USE_TRIGGER
from onp.defend.report.repaired import verified_headline, verified_reason
from onp.defend.verdict import LEAST_IMAGES, WEAK_TRIGGER, Findings, Survivor
from onp.detect.anomaly import DetectionScores
from onp.detect.config import SECOND_PASS_STEPS
from onp.detect.targets import SEPARATION, Detection


def headline(findings: Findings, images: ImageSet) -> str:
    """What was measured, in a sentence.

    Args:
        findings: of the run.
        images: whose class names to use.
    """
    if findings.missed is not None:
        return (
            f"The scan missed a trigger that works on {_percent(findings.missed.value)} of the images it was measured on: "
            f"{USE_TRIGGER}."
        )
    verified = verified_headline(findings)
    if verified is not None:
        return verified
    detection, pruned = findings.detection, findings.mask.pruned_count
    parts: tuple[str, ...]
    match findings.decision:
        case "no-backdoor-evidence":
            parts = ("No evidence of a backdoor was found", *_measured(findings))
        case "inconclusive":
            assert detection is not None
            threshold = f"the threshold of {detection.config.threshold:g}"
            parts = ("Inconclusive", f"the highest detection score, {max(detection.scores.score):.1f}, is close to {threshold}")
        case "not-repairable":
            parts = ("Evidence of a backdoor", "no mask within the accuracy budget removes it, and nothing was changed")
        case "backdoor-evidence":
            parts = ("Evidence of a backdoor", *_measured(findings), "nothing was changed")
        case "repaired" | "partly-repaired":
            parts = ("Evidence of a backdoor", f"{pruned} {'unit' if pruned == 1 else 'units'} pruned", *_left(findings))
    return "; ".join(parts) + "."


def _measured(findings: Findings) -> tuple[str, ...]:
    """What the evidence is, or why there is none."""
    detection, before = findings.detection, findings.audit.before
    if detection is not None:
        score, threshold = max(detection.scores.score), detection.config.threshold
        return (f"the highest detection score is {score:.1f}, the threshold {threshold:g}",)
    return tuple(f"the given trigger reaches {_percent(asr.value)}" for asr in before.asr_surrogate.values())


def _left(findings: Findings) -> tuple[str, ...]:
    """What the strongest triggers still reach on the repaired network."""
    left, surviving = findings.left, findings.survivors
    parts = []
    if surviving:
        worst = surviving[0]
        clean = f"of clean networks 19 in 20 stay below {_percent(worst.clean)}"
        parts.append(f"{worst.name} triggers still reach {_percent(worst.asr.value)}, {clean}")
    elif left.asr_surrogate:
        kind = "the strongest surrogate trigger" if findings.detection is not None else "the given trigger"
        parts.append(f"{kind} still reaches {_percent(max(asr.value for asr in left.asr_surrogate.values()))}")
    if findings.outlived is not None:
        parts.append(f"the trigger given for measuring still works on {_percent(findings.outlived.value)} of the images")
    return tuple(parts)


def highest_score(detection: Detection, images: ImageSet) -> str:
    """The class with the highest detection score, in a sentence."""
    highest, threshold = detection.scores.predicted_target, detection.config.threshold
    score = detection.scores.score[highest]
    return f"Class {images.name(highest)} has the highest detection score, {score:.1f}; the threshold is {threshold:g}."


def reason(findings: Findings, images: ImageSet, config: DefendConfig) -> str:
    """Why the decision was taken.

    Args:
        findings: of the run.
        images: all clean images, whose class names to use.
        config: the options.
    """
    detection, repairs, decision = findings.detection, findings.repairs, findings.decision
    verified = verified_reason(findings, images)
    if verified is not None:
        return verified
    if repairs is None:
        return _without_repair(findings, images, config)
    targets = [repair.target for repair in repairs.repairs]
    found = _found(detection, targets, images)
    if repairs.works:
        count = int((~repairs.mask.keep).sum())
        text = f"{found}; {count} {'unit was' if count == 1 else 'units were'} pruned to remove it."
        return f"{text} {surviving_families(findings.survivors)}" if decision == "partly-repaired" else text
    *done, last = (images.name(k) for k in targets)
    first = f"A mask was found for class {' and '.join(done)}, but none for class {last}: no" if done else "No"
    asr = float(repairs.repairs[-1].search.outcome.asr)
    return (
        f"{found}. {first} pruning mask within the accuracy budget of {100 * config.max_acc_drop:g} points removes most of the "
        f"backdoor; the best one leaves an ASR of {100 * asr:.0f} % on the images that masks are scored on. {UNCHANGED}"
        f"{budget_advice(repairs, config.max_acc_drop)}"
    )


def _without_repair(findings: Findings, images: ImageSet, config: DefendConfig) -> str:
    detection = findings.detection
    if findings.decision == "backdoor-evidence":
        targets = [triggers.bank.target for triggers in findings.audit.data.triggers]
        found, least = _found(detection, targets, images), LEAST_IMAGES
        if not config.repair:
            return f"{found}. {UNCHANGED}"
        return (
            f"{found}. {UNCHANGED} A repair needs {least} clean images and {len(images)} were given, {least - len(images)} too "
            "few: give more, or repair all the same with --force."
        )
    if detection is None:
        return f"The given trigger works on fewer than {_percent(WEAK_TRIGGER)} of the images. {UNCHANGED}"
    scores, highest = detection.scores, detection.scores.predicted_target
    text = (
        f"No class reaches the detection threshold of {detection.config.threshold:g}: the highest score is "
        f"{scores.score[highest]:.1f}, of class {images.name(highest)}"
    )
    close = ", which is close to it; other seeds or images can change a score by that much"
    return f"{text}{close if findings.decision == 'inconclusive' else ''}. {UNCHANGED}"


UNCHANGED = "The model was not changed."


def surviving_families(surviving: Sequence[Survivor]) -> str:
    """Which fresh triggers still work, in a sentence."""
    each = (f"{one.name} {_percent(one.asr.value)} (19 in 20 clean networks: below {_percent(one.clean)})" for one in surviving)
    return f"After the repair, fresh triggers still reach more than on clean networks: {', '.join(each)}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


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
            f"Also above the threshold: {_scores(reached[1:], detection.first, images)}. Not repaired, because more than "
            f"{SEPARATION:g} below class {images.name(reached[0])}: such a class is usually close to the target in feature "
            "space, but it can be a second target.",
        )
    sentences = [
        f"Ambiguous detection: {_scores(reached, detection.first, images)} "
        f"{'have similar scores' if len(reached) > 1 else 'is close to the threshold'}. All classes were scored again with "
        f"{SECOND_PASS_STEPS:g} times the inversion steps: {_scores(reached, detection.second, images)}.",
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
