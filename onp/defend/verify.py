"""Whether a repaired network still obeys triggers: `onp verify`.

The repair is recognised from the weights. A mask.json beside the checkpoint is what its supplier says of the repair: it is
compared with the weights, and has no other part. Triggers are inverted on the network as it is, for the classes that a
scan chooses.
"""

from __future__ import annotations

from dataclasses import replace

from onp.defend.case import Case
from onp.defend.estimate import announce, scaled_down
from onp.defend.memory import within_memory
from onp.defend.outcome import Outcome
from onp.defend.repair_loop import held_out_triggers
from onp.defend.report.audit import AuditSet, audit_repair
from onp.defend.report.build import build_report
from onp.defend.report.diagnostics import diagnose
from onp.defend.report.repaired import known_asr
from onp.defend.report.sections import Verification
from onp.defend.report.sentences import most_probable
from onp.defend.run import Run
from onp.defend.verdict import WEAK_TRIGGER, Findings, decide
from onp.detect.bn_statistics import BnStatistics
from onp.detect.targets import detect_targets
from onp.errors import InputError
from onp.files import file_kind
from onp.model.mask import Mask, load_mask
from onp.model.pruned import pruned_units
from onp.model.victim import Victim

MASK = "mask.json"


def verify_pipeline(case: Case, run: Run) -> Outcome:
    """Invert triggers on a repaired network, and tell whether one of its classes is the target of a backdoor.

    Seeds are others than those of a repair, so the triggers are new ones. Batch-norm statistics have no part. A known trigger
    is measured too.

    Args:
        case: the network, repaired by pruning or in another way, the clean images, and what is for measuring only.
        run: options, settings, seed, progress and resume store.

    Raises:
        InputError: the mask beside the checkpoint is one of another network, or damaged.
    """
    victim, clean = case.victim, case.clean
    mask = Mask.of(victim)
    verification = compare_mask(victim, mask_beside(victim))
    run = within_memory(scaled_down(run, victim), case).fork("verify")
    announce(replace(case, known_trigger=None), run)  # triggers are inverted beside a known one

    bn = BnStatistics.nothing(victim, case.searched)
    detection = detect_targets(victim, clean, bn, run.detecting(), run.stage)
    run.monitor.note(most_probable(detection, clean.build))
    banks = held_out_triggers(case, detection, None, bn, run)
    banks += [case.known_trigger] if case.known_trigger is not None else []
    data = AuditSet.of(victim, clean, banks, case.evaluation)
    with run.stage("measuring the result", data.images) as stage:
        audit = audit_repair(victim, victim, data, stage.advance)
        diagnostics = diagnose(victim, victim, mask, audit)
    findings = Findings(detection, None, decide(detection, None, audit), mask, audit, verification=verification)
    if works(findings):
        findings = replace(findings, decision="backdoor-evidence")
    return Outcome(build_report(case, run, findings), diagnostics, mask, victim)


def mask_beside(victim: Victim) -> Mask | None:
    """The mask.json in the folder of the checkpoint; None where there is none, or the network has no file.

    Raises:
        InputError: it is one of another network, or damaged.
    """
    path = None if victim.checkpoint is None else victim.checkpoint.path.parent / MASK
    if path is None or file_kind(path) is None:
        return None
    try:
        return load_mask(path, victim)
    except InputError as error:
        problem = str(error).rstrip(".").replace(f"{path} ", f"{MASK} ")
        raise InputError(f"{problem} ({path} lies beside the checkpoint); move it away to verify without it.") from error


def compare_mask(victim: Victim, claimed: Mask | None) -> Verification:
    """What the weights say of a mask.

    Args:
        victim: the network.
        claimed: the mask that is claimed for the network; None where there is none.
    """
    found = pruned_units(victim)
    if claimed is None:
        return Verification(found.pruned(), None, {}, {})
    not_zero, not_named = (replace(found, keep=keep) for keep in (claimed.keep | ~found.keep, found.keep | ~claimed.keep))
    return Verification(found.pruned(), claimed.pruned(), not_zero.pruned(), not_named.pruned())


def works(findings: Findings) -> bool:
    """Whether a known trigger works, or a mask is not in the weights: units that were pruned for a backdoor are back."""
    known = known_asr(findings)
    assert findings.verification is not None
    return bool(findings.verification.not_zero) or (known is not None and known.value >= WEAK_TRIGGER)
