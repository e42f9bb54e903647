"""Detect a backdoor in an image classifier and repair it: `python -m onp.defend`.

`defend` reads and writes files, `run_pipeline` works on values. This file is the pipeline; its stages are functions of
`onp.detect`, `onp.search` and `onp.model`. It may import every package but `onp.compare`.
"""

from __future__ import annotations

from onp.defend.after_repair import shrink_repaired, tune_repaired
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.estimate import announce, announce_repair, scaled_down
from onp.defend.healing import Repaired, repaired_network
from onp.defend.inputs import read_case
from onp.defend.memory import within_memory
from onp.defend.outcome import Outcome
from onp.defend.outputs import write_outputs, write_refusal
from onp.defend.provenance import digests, inputs_of, provenance
from onp.defend.repair_loop import held_out_triggers
from onp.defend.report.audit import AuditSet, audit_repair, measure_figures
from onp.defend.report.build import build_report
from onp.defend.report.diagnostics import diagnose
from onp.defend.report.sentences import most_probable
from onp.defend.run import Run
from onp.defend.verdict import Findings, decide, is_to_repair
from onp.defend.verify import verify_pipeline
from onp.detect.bn_statistics import bn_statistics
from onp.detect.targets import STAGE, detect_targets
from onp.errors import UnsafeCheckpointError
from onp.model.mask import Mask
from onp.model.tuning import check_tuning
from onp.numerics import strict_float32

__all__ = ["Outcome", "defend", "run_pipeline"]


def defend(config: DefendConfig) -> Outcome:
    """Detect a backdoor, repair it, audit the repair; write the files where `config.out` is given.

    Where `config.device` is auto and the GPU fails, the run continues on the CPU.

    Raises:
        InputError: something given cannot be used, or the machine has too little memory or disk.
    """
    with Run.open(config) as run:  # options resolved; progress, settings, seeds, resume store
        try:
            outcome = run.with_fallback(_read_and_run)
        except UnsafeCheckpointError as error:
            write_refusal(error, str(run.config.model), run.config.out)
            raise
        run.monitor.pictures((picture.family, picture.triggered) for picture in outcome.diagnostics.pictures)
        return write_outputs(outcome, run.config.out, run.hub)


def _read_and_run(run: Run) -> Outcome:
    given = inputs_of(run.config, run.hub)  # before they are read, so that a file changed meanwhile is noticed
    case = read_case(run)  # untrusted files to a network, clean images, a known trigger, and what is for measuring only
    with run.stage("taking the SHA-256 of the files"):
        read = digests(given)
    run.begin(case)
    return run_pipeline(case, run).with_provenance(provenance(read))


@strict_float32()
def run_pipeline(case: Case, run: Run) -> Outcome:
    """The pipeline on values in memory; writes no file but those of the resume store.

    Args:
        case: the network, the clean images, a known trigger, and what is for measuring only.
        run: options, settings, seed, progress and resume store.
    """
    if run.config.verify:
        return verify_pipeline(case, run)
    victim, clean = case.victim, case.clean
    check_tuning(run.config.tune, victim)
    run = within_memory(scaled_down(run, victim), case)
    ahead = announce(case, run)

    # Is there a backdoor, and towards which class? BN statistics are measured once, for all stages.
    bn = bn_statistics(victim, case.searched)
    detection = None
    if case.known_trigger is None:
        detection = detect_targets(victim, clean, bn, run.detecting(), run.stage)
        run.monitor.note(most_probable(detection, clean.build))

    # Which neurons carry it? For each target class: triggers, environment, search, mask. They are pruned, and what is left is
    # taught to ignore the triggers.
    to_repair = is_to_repair(case, run.config)
    if detection is not None and detection.backdoored:
        announce_repair(ahead, run.monitor.seconds.get(STAGE, 0.0), run)
    result = repaired_network(case, detection, bn, run) if to_repair else Repaired(victim, None)
    repairs, repaired = result.repairs, result.network
    mask = repairs.mask if repairs is not None and repairs.works else Mask.of(victim)

    # What did the repair do? Images and triggers that neither detection nor search has seen.
    held_out = held_out_triggers(case, detection, repairs, bn, run)
    data = AuditSet.of(victim, clean, held_out, case.evaluation)
    with run.stage("measuring the result", data.images if repaired is victim else 2 * data.images) as stage:
        audit = audit_repair(victim, repaired, data, stage.advance)
        diagnostics = diagnose(victim, repaired, mask, audit)
        pruning = None if result.pruned is None else measure_figures(result.pruned, data)

    tuned = shrunk = None
    if repaired is not victim:
        repaired, tuned = tune_repaired(repaired, mask, case.searched, audit, run)
        shrunk = shrink_repaired(repaired, mask, run)
    decision = decide(detection, repairs, audit, tuned)
    findings = Findings(detection, repairs, decision, mask, audit, pruning, tuned, shrunk)
    return Outcome(build_report(case, run, findings), diagnostics, mask, repaired)
