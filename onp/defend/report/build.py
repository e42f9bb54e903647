"""From what the stages of a run found to its report."""

from __future__ import annotations

from dataclasses import dataclass

from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.decision import Decision
from onp.defend.repair_loop import Repairs
from onp.defend.report.audit import Audit
from onp.defend.report.report import Report
from onp.defend.report.sections import (
    BudgetSection,
    DataSection,
    DetectionSection,
    ModelSection,
    PrunableLayer,
    SkippedLayer,
    SurrogateSection,
    Tuned,
)
from onp.defend.report.sentences import notes, reason
from onp.defend.report.warnings import further_copies, warning
from onp.defend.run import Run
from onp.detect.bank import TriggerBank
from onp.detect.targets import Detection
from onp.model.mask import Mask
from onp.model.shrink import Shrunk
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Findings:
    """What the stages of a run came to."""

    detection: Detection | None  #: None where the trigger was given
    repairs: Repairs | None  #: None where no class reached the threshold
    decision: Decision
    mask: Mask  #: what was pruned
    audit: Audit
    tuned: Tuned | None = None
    shrunk: Shrunk | None = None


def decide(repairs: Repairs | None) -> Decision:
    """The decision; only surrogate triggers (or the given one) and clean images have a say."""
    if repairs is None:
        return "no-backdoor-evidence"
    return "repaired" if repairs.works else "not-repairable"


def build_report(case: Case, run: Run, findings: Findings) -> Report:
    """Put everything that a reader wants to know into one value.

    Args:
        case: network and images.
        run: options, settings and times.
        findings: what the stages came to.
    """
    detection, repairs, audit, config = findings.detection, findings.repairs, findings.audit, run.config
    images = case.images
    targets = repairs.targets if repairs else ()
    return Report(
        decision=findings.decision,
        reason=reason(detection, repairs, images, config.max_acc_drop),
        warning=warning(audit, images, config.max_acc_drop, case.known_trigger is not None),
        notes=further_copies(case.victim.checkpoint, findings.decision) + notes(detection, repairs, images),
        target_classes=targets,
        target_name=case.name(targets[0]) if targets else None,
        model=_model(case.victim, config),
        data=_data(case, config),
        detection=_detection(detection, repairs),
        before=audit.before,
        after=audit.after,
        pruned=findings.mask.pruned(),
        units=case.victim.units,
        budget=_budget(repairs, run.seconds),
        timings=dict(run.monitor.seconds),
        config=config,
        preset=run.preset,
        tuned=findings.tuned,
        shrunk=findings.shrunk,
    )


def _model(victim: Victim, config: DefendConfig) -> ModelSection:
    return ModelSection(
        path=config.model,
        arch=victim.arch,
        input_shape=victim.input_shape,
        classes=victim.classes,
        layers=tuple(PrunableLayer(layer.name, layer.units) for layer in victim.layers),
        not_prunable=tuple(SkippedLayer(name, why) for name, why in victim.skipped),
    )


def _data(case: Case, config: DefendConfig) -> DataSection:
    clean = case.clean
    return DataSection(
        path=config.data,
        images=len(clean.build) + len(clean.score) + len(clean.holdout),
        build=len(clean.build),
        score=len(clean.score),
        holdout=len(clean.holdout),
        normalisation=str(case.victim.normalisation),
        evaluation=config.eval_data,
    )


def _detection(detection: Detection | None, repairs: Repairs | None) -> DetectionSection | None:
    if detection is None:
        return None
    return DetectionSection(
        score=detection.scores.score,
        anomaly_index=detection.scores.anomaly_index,
        threshold=detection.config.threshold,
        first_pass=None if detection.second is None else detection.first.score,
        after_repairs=tuple(scores.score for scores in repairs.scores_after) if repairs else (),
        surrogates=_surrogates(repairs),
    )


def _surrogates(repairs: Repairs | None) -> tuple[SurrogateSection, ...]:
    banks = [repair.search.bank for repair in repairs.repairs] if repairs else []
    return tuple(
        SurrogateSection(
            family=surrogate.family,
            target=surrogate.target,
            weight=weight,
            anomaly_index=surrogate.anomaly_index,
            success=surrogate.success,
            cost=surrogate.cost,
            bn_match=surrogate.bn_match,
        )
        for bank in banks
        if isinstance(bank, TriggerBank)
        for surrogate, weight in zip(bank.surrogates, bank.weights, strict=True)
    )


def _budget(repairs: Repairs | None, wall_seconds: float) -> BudgetSection:
    searches = [repair.search for repair in repairs.repairs] if repairs else []
    evaluations, scoring = sum(search.evaluations for search in searches), sum(search.seconds for search in searches)
    return BudgetSection(evaluations, evaluations / scoring if scoring else 0.0, wall_seconds)
