"""What a run comes to: from detection, repairs and the figures after them to a decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from onp.defend.case import Case
from onp.defend.clean_reference import CleanReference, clean_reference
from onp.defend.config import DefendConfig
from onp.defend.decision import REPAIRS, Decision
from onp.defend.repair_loop import Repairs
from onp.defend.report.audit import Audit, AuditSet, Figures
from onp.defend.report.sections import Tuned, Verification
from onp.detect.known_trigger import KNOWN
from onp.detect.targets import Detection
from onp.engine.metrics import Share
from onp.model.mask import Mask
from onp.model.shrink import Shrunk

LEAST_IMAGES = 50  # clean images below which nothing is repaired unless forced
WEAK_TRIGGER = 0.2  # ASR below which an image change is no backdoor trigger


@dataclass(frozen=True, eq=False)
class Findings:
    """What the stages of a run came to."""

    detection: Detection | None  #: None where the trigger was given
    repairs: Repairs | None  #: None where no backdoor was found, or nothing was to be repaired
    decision: Decision
    mask: Mask  #: what was pruned
    audit: Audit
    pruning: Figures | None = None  #: of the pruned network before it was healed; None where it was not
    tuned: Tuned | None = None
    shrunk: Shrunk | None = None
    verification: Verification | None = None  #: of `onp verify`
    reference: CleanReference = field(default_factory=clean_reference)  #: what clean networks show

    @property
    def left(self) -> Figures:
        """Of the network that the run ends with."""
        return self.audit.after if self.tuned is None else self.tuned.figures

    @property
    def survivors(self) -> tuple[Survivor, ...]:
        """On that network."""
        return survivors(self.left, self.audit.data, self.reference)

    @property
    def missed(self) -> Share | None:
        """ASR of the true trigger where it works and no class was found; None otherwise."""
        return missed(self.decision, self.audit.before)

    @property
    def outlived(self) -> Share | None:
        """ASR of the true trigger after a repair where it still works; None otherwise."""
        asr = self.left.asr
        return asr if asr is not None and self.decision in REPAIRS and asr.value >= WEAK_TRIGGER else None


@dataclass(frozen=True)
class Survivor:
    """Fresh triggers of one family that still work better than those of clean networks."""

    name: str  #: as in `Figures.asr_surrogate`: the family, and with several target classes the class
    asr: Share
    clean: float  #: ASR that few clean networks exceed, a share


def missed(decision: Decision, before: Figures) -> Share | None:
    """ASR of the true trigger where it works and no class was found; None otherwise.

    Args:
        decision: of the run.
        before: figures of the network as given.
    """
    found = decision not in ("no-backdoor-evidence", "inconclusive")
    return None if found or before.asr is None or before.asr.value < WEAK_TRIGGER else before.asr


def is_to_repair(case: Case, config: DefendConfig) -> bool:
    """Whether a backdoor is to be repaired: as asked for, and from enough images or forced."""
    return config.repair and not config.verify and (config.force or len(case.images) >= LEAST_IMAGES)


def survivors(figures: Figures, data: AuditSet, reference: CleanReference) -> tuple[Survivor, ...]:
    """The fresh triggers that work better than on clean networks, the strongest first.

    Args:
        figures: of the network to judge, the repaired one for instance.
        data: what they were measured on.
        reference: what clean networks show; a family that it does not hold has no bar.
    """
    found = []
    for name, asr in figures.asr_surrogate.items():
        clean = reference.share(data.families[name])
        if clean is not None and asr.value > clean:
            found.append(Survivor(name, asr, clean))
    return tuple(sorted(found, key=lambda survivor: -survivor.asr.value))


def decide(
    detection: Detection | None,
    repairs: Repairs | None,
    audit: Audit,
    tuned: Tuned | None = None,
    reference: CleanReference | None = None,
) -> Decision:
    """The decision. Triggers inverted from clean images, or the given one, have a say; the true trigger of --eval-* has none.

    Args:
        detection: None where the trigger was given.
        repairs: None where no backdoor was found, or nothing was to be repaired.
        audit: figures before and after the repair.
        tuned: those after the training of --tune.
        reference: what clean networks show; the one of the package where it is None.
    """
    if repairs is not None:
        if not repairs.works:
            return "not-repairable"
        figures = audit.after if tuned is None else tuned.figures
        left = survivors(figures, audit.data, clean_reference() if reference is None else reference)
        return "partly-repaired" if left else "repaired"
    if detection is None:
        given = audit.before.asr_surrogate.get(KNOWN)
        return "backdoor-evidence" if given is not None and given.value >= WEAK_TRIGGER else "no-backdoor-evidence"
    return detected(detection)


def detected(detection: Detection) -> Decision:
    """The decision where nothing is repaired."""
    if detection.backdoored:
        return "backdoor-evidence"
    unsure = detection.probabilities.backdoor >= detection.verdict.none_below
    return "inconclusive" if unsure else "no-backdoor-evidence"
