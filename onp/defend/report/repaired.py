"""Sentences on networks that were pruned before the run, and on their verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onp.data.images import ImageSet
from onp.defend.report.sections import Verification
from onp.defend.verdict import WEAK_TRIGGER, Findings
from onp.detect.anomaly import LATENT
from onp.detect.known_trigger import KNOWN
from onp.detect.targets import Detection
from onp.engine.metrics import Share
from onp.errors import first_few


def verified_headline(findings: Findings) -> str | None:
    """What was measured, in a sentence; None for a run that does not verify a repair."""
    verification, detection = findings.verification, findings.detection
    if verification is None or detection is None:
        return None
    if verification.not_zero:
        count = _count(verification.not_zero)
        return f"The repair is not in this checkpoint; {_are(count)} not zero that mask.json names as pruned."
    known = known_asr(findings)
    if known is not None and known.value >= WEAK_TRIGGER:
        return f"Evidence of a backdoor; the given trigger still reaches {100 * known.value:.1f} %."
    score = f"the highest detection score is {max(detection.scores.score):.1f}, the threshold {detection.config.threshold:g}"
    match findings.decision:
        case "backdoor-evidence":
            return f"Evidence of a backdoor; {score}."
        case "inconclusive":
            return f"Inconclusive; {score}, which is close to it."
    return f"No trigger was found that this network obeys; {score}."


def verified_reason(findings: Findings, images: ImageSet) -> str | None:
    """Why the decision was taken; None for a run that does not verify a repair.

    Args:
        findings: of the run.
        images: whose class names to use.
    """
    verification, detection = findings.verification, findings.detection
    if verification is None or detection is None:
        return None
    sentences, threshold, scores = [], detection.config.threshold, detection.scores
    if verification.not_zero:
        count, named = _count(verification.not_zero), _count(verification.mask or {})
        sentences.append(
            f"Of the {_units(named)} that mask.json names as pruned, {count} {'is' if count == 1 else 'are'} not zero in the "
            f"weights ({_listed(verification.not_zero)}): it is not the mask of this checkpoint, or its repair was undone."
        )
    known = known_asr(findings)
    if known is not None:
        sentences.append(f"The given trigger leads {100 * known.value:.1f} % of the images to its class (n = {known.n}).")
    listed = ", ".join(f"{images.name(k)} ({scores.score[k]:.1f})" for k in detection.targets)
    highest = scores.predicted_target
    sentences.append(
        f"Fresh triggers were inverted for every class: {listed} reached the threshold of {threshold:g}."
        if listed
        else f"Fresh triggers were inverted for every class, and none reaches the threshold of {threshold:g}: the highest "
        f"score is {scores.score[highest]:.1f}, of class {images.name(highest)}."
    )
    return " ".join(sentences)


def known_asr(findings: Findings) -> Share | None:
    """ASR of the known trigger on the network as given; None where none was given."""
    data, measured = findings.audit.data, findings.audit.before.asr_surrogate
    return next((measured[name] for name, family in data.families.items() if family == KNOWN and name in measured), None)


def repaired_notes(findings: Findings, images: ImageSet) -> tuple[str, ...]:
    """What pruned units mean for the scores, and what the weights say of a mask; empty where there is nothing to add.

    Args:
        findings: of the run.
        images: whose class names to use.
    """
    detection, verification = findings.detection, findings.verification
    if verification is not None:
        first = _of_mask(verification)
    elif detection is not None and detection.pruned:
        first = (
            f"{_are(detection.pruned)} pruned already in the network as given. Pruning changes what batch norms read, so the "
            "detectors that compare batch-norm statistics have no say; onp verify asks whether a repaired network still obeys "
            "triggers.",
        )
    else:
        return ()
    return first + (() if detection is None else easy_classes(detection, images))


def easy_classes(detection: Detection, images: ImageSet) -> tuple[str, ...]:
    """The classes that would reach the threshold and do not count, in a sentence; empty where there are none."""
    scores = detection.scores
    every = scores.easy.score if scores.shortcuts_only else scores.score
    classes = [k for k, score in enumerate(every) if score >= detection.config.threshold and not scores.score[k]]
    if not classes:
        return ()
    each = (f"{images.name(k)} (score {every[k]:.1f}, {LATENT} {scores.anomaly_index[LATENT][k]:.1f})" for k in classes)
    return (
        f"Not counted: {', '.join(each)}. Triggers reach such a class easily, but the features hold no shortcut to it, as they "
        "do to the target of a backdoor.",
    )


def _of_mask(verification: Verification) -> tuple[str, ...]:
    count, extra = _count(verification.pruned), _count(verification.not_named)
    if verification.mask is None and not count:
        return (
            "No unit is pruned in the weights, and no mask.json lies beside them: onp did not repair this network by pruning. "
            "Where nothing was trained either, onp scan sees more, since it reads batch-norm statistics too.",
        )
    if verification.mask is None:
        return (f"{_are(count)} pruned in the weights; no mask.json lies beside the checkpoint to compare them with.",)
    if extra:
        return (f"{_are(extra)} pruned in the weights and not named in mask.json: {_listed(verification.not_named)}.",)
    return () if verification.not_zero else (f"{_are(count)} pruned in the weights, those that mask.json names.",)


def _count(layers: Mapping[str, Sequence[int]]) -> int:
    return sum(map(len, layers.values()))


def _units(count: int) -> str:
    return f"{count} {'unit' if count == 1 else 'units'}"


def _are(count: int) -> str:
    return f"{_units(count)} {'is' if count == 1 else 'are'}"


def _listed(layers: Mapping[str, Sequence[int]]) -> str:
    return first_few([f"{layer} {unit}" for layer, units in layers.items() for unit in units])
