"""Sentences on networks that were pruned before the run, and on their verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onp.data.images import ImageSet
from onp.defend.report.probabilities import found, in_words, not_found
from onp.defend.report.sections import Verification
from onp.defend.verdict import WEAK_TRIGGER, Findings
from onp.detect.known_trigger import KNOWN
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
    probability = in_words(detection.probabilities.backdoor)
    match findings.decision:
        case "backdoor-evidence":
            return f"Evidence of a backdoor (probability {probability})."
        case "inconclusive":
            return f"Inconclusive; the probability of a backdoor is {probability}."
    return f"No trigger was found that this network obeys; the probability of a backdoor is {probability}."


def verified_reason(findings: Findings, images: ImageSet) -> str | None:
    """Why the decision was taken; None for a run that does not verify a repair.

    Args:
        findings: of the run.
        images: whose class names to use.
    """
    verification, detection = findings.verification, findings.detection
    if verification is None or detection is None:
        return None
    sentences = []
    if verification.not_zero:
        count, named = _count(verification.not_zero), _count(verification.mask or {})
        sentences.append(
            f"Of the {_units(named)} that mask.json names as pruned, {count} {'is' if count == 1 else 'are'} not zero in the "
            f"weights ({_listed(verification.not_zero)}): it is not the mask of this checkpoint, or its repair was undone."
        )
    known = known_asr(findings)
    if known is not None:
        sentences.append(f"The given trigger leads {100 * known.value:.1f} % of the images to its class (n = {known.n}).")
    targets = detection.targets
    sentences.append(f"{found(detection, targets, images)}." if targets else not_found(detection, images))
    return " ".join(sentences)


def known_asr(findings: Findings) -> Share | None:
    """ASR of the known trigger on the network as given; None where none was given."""
    data, measured = findings.audit.data, findings.audit.before.asr_surrogate
    return next((measured[name] for name, family in data.families.items() if family == KNOWN and name in measured), None)


def repaired_notes(findings: Findings) -> tuple[str, ...]:
    """What pruned units mean for detection, and what the weights say of a mask; empty where there is nothing to add."""
    detection, verification = findings.detection, findings.verification
    if verification is not None:
        return _of_mask(verification)
    if detection is not None and detection.pruned:
        return (
            f"{_are(detection.pruned)} pruned already in the network as given. Pruning changes what batch norms read, so the "
            "detectors that compare batch-norm statistics have no say; onp verify asks whether a repaired network still obeys "
            "triggers.",
        )
    return ()


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
