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
from onp.defend.report.probabilities import found, in_words, not_found
from onp.defend.report.repaired import verified_headline, verified_reason
from onp.defend.verdict import LEAST_IMAGES, WEAK_TRIGGER, Findings, Survivor
from onp.detect.targets import Detection, evident, ranking


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
            why = (
                _given(findings) if detection is None else (f"its probability is {in_words(detection.probabilities.backdoor)}",)
            )
            parts = ("No evidence of a backdoor was found", *why)
        case "inconclusive":
            assert detection is not None
            parts = ("Inconclusive", f"the probability of a backdoor is {in_words(detection.probabilities.backdoor)}")
        case "not-repairable":
            unchanged = "no mask within the accuracy budget removes it, and nothing was changed"
            parts = (_evident(findings), unchanged)
        case "backdoor-evidence":
            parts = (_evident(findings), *(_given(findings) if detection is None else ()), "nothing was changed")
        case "repaired" | "partly-repaired":
            units = f"{pruned} {'unit' if pruned == 1 else 'units'} pruned"
            healed = findings.pruning is not None
            parts = (_evident(findings), f"{units}, the rest healed" if healed else units, *_left(findings))
    return "; ".join(parts) + "."


def _evident(findings: Findings) -> str:
    """That there is evidence, and how probable the backdoor is where that was asked."""
    detection = findings.detection
    probability = "" if detection is None else f" (probability {in_words(detection.probabilities.backdoor)})"
    return f"Evidence of a backdoor{probability}"


def _given(findings: Findings) -> tuple[str, ...]:
    """What the given trigger reaches."""
    return tuple(f"the given trigger reaches {_percent(asr.value)}" for asr in findings.audit.before.asr_surrogate.values())


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


def most_probable(detection: Detection, images: ImageSet) -> str:
    """The probability of a backdoor and its most probable target, in a sentence."""
    probabilities, target = detection.probabilities, detection.predicted_target
    backdoor, of_class = in_words(probabilities.backdoor), in_words(probabilities.per_class[target])
    return f"The probability of a backdoor is {backdoor}; class {images.name(target)} is its most probable target ({of_class})."


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
    evidence = _evidence(detection, targets, images)
    if repairs.works:
        count = int((~repairs.mask.keep).sum())
        text = f"{evidence}; {count} {'unit was' if count == 1 else 'units were'} pruned to remove it{_healed(repairs)}."
        return f"{text} {surviving_families(findings.survivors)}" if decision == "partly-repaired" else text
    *done, last = (images.name(k) for k in targets)
    first = f"A mask was found for class {' and '.join(done)}, but none for class {last}: no" if done else "No"
    asr = float(repairs.repairs[-1].search.outcome.asr)
    return (
        f"{evidence}. {first} pruning mask within the accuracy budget of {100 * config.max_acc_drop:g} points removes most of "
        f"the backdoor; the best one leaves an ASR of {100 * asr:.0f} % on the images that masks are scored on. {UNCHANGED}"
        f"{budget_advice(repairs, config.max_acc_drop)}"
    )


def _healed(repairs: Repairs) -> str:
    """That the network was healed, and whether the pruning had been enough."""
    if not repairs.healed:
        return ""
    last = repairs.repairs[-1].search
    left = f"an ASR of {100 * float(last.outcome.asr):.0f} % on the images that masks are scored on"
    enough = "" if last.works else f", which alone leaves {left}"
    return f"{enough}, and what is left was trained to ignore the inverted triggers"


def _without_repair(findings: Findings, images: ImageSet, config: DefendConfig) -> str:
    detection = findings.detection
    if findings.decision == "backdoor-evidence":
        targets = [triggers.bank.target for triggers in findings.audit.data.triggers]
        evidence, least = _evidence(detection, targets, images), LEAST_IMAGES
        if not config.repair:
            return f"{evidence}. {UNCHANGED}"
        return (
            f"{evidence}. {UNCHANGED} A repair needs {least} clean images and {len(images)} were given, {least - len(images)} "
            "too few: give more, or repair all the same with --force."
        )
    if detection is None:
        return f"The given trigger works on fewer than {_percent(WEAK_TRIGGER)} of the images. {UNCHANGED}"
    again = " Other seeds or images can change that." if findings.decision == "inconclusive" else ""
    return f"{not_found(detection, images)}{again} {UNCHANGED}"


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
    """Why there was more than one pass of detection, and what became of further classes; empty where there was one pass."""
    if detection is None or len(detection.passes) == 1:
        return ()
    verdict, passes = detection.verdict, [each.probabilities for each in detection.passes]
    first = passes[0]
    if first.backdoor >= verdict.backdoor_from:
        why = "the first pass left open which classes are targets"
    else:
        why = "the first pass was inconclusive"
    sentence = (
        f"Detection was repeated with other seeds and other images to invert triggers on, because {why}: the probability of a "
        f"backdoor was {_one_after_the_other([each.backdoor for each in passes])}."
    )
    several = sorted({k for each in passes for k in ranking(each)[:2]}, key=lambda k: -first.per_class[k])
    each = (f"{images.name(k)} {_one_after_the_other([one.per_class[k] for one in passes])}" for k in several)
    sentence += f" By class: {'; '.join(each)}."
    sentences = [sentence]
    if repairs is not None:
        left = list(detection.targets[1:])
        for repair, after in zip(repairs.repairs, repairs.passes_after, strict=False):
            still = [k for k in evident(after.probabilities, verdict) if k in left]
            next_step = f"{images.name(still[0])} was repaired next" if still else "no further class was repaired"
            each = (f"{images.name(k)} ({in_words(after.probabilities.per_class[k])})" for k in left)
            sentences.append(f"On the network repaired for class {images.name(repair.target)}: {', '.join(each)}; {next_step}.")
            left = still[1:]
    return tuple(sentences)


def _one_after_the_other(probabilities: Sequence[float]) -> str:
    """Of the passes, in order: 60 %, then 5 %."""
    return ", then ".join(in_words(each) for each in probabilities)


def _evidence(detection: Detection | None, classes: Sequence[int], images: ImageSet) -> str:
    """Which classes are targets, and how that is known."""
    if detection is None:
        return f"The given trigger leads to class {images.name(classes[0])}"
    return found(detection, classes, images)
