"""From what the stages of a run found to its report."""

from __future__ import annotations

from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.repair_loop import Repairs
from onp.defend.report.advice import next_steps
from onp.defend.report.names import arch_name, name_of, named
from onp.defend.report.probabilities import by_detector
from onp.defend.report.repaired import repaired_notes
from onp.defend.report.report import Report
from onp.defend.report.sections import (
    BudgetSection,
    DataSection,
    DetectionSection,
    ModelSection,
    PrunableLayer,
    ReferenceSection,
    SkippedLayer,
    SurrogateSection,
)
from onp.defend.report.sentences import headline, notes, reason
from onp.defend.report.warnings import further_copies, warning
from onp.defend.run import Run
from onp.defend.verdict import Findings
from onp.detect.bank import TriggerBank
from onp.detect.targets import Detection
from onp.model.victim import Victim


def build_report(case: Case, run: Run, findings: Findings) -> Report:
    """Put everything that a reader wants to know into one value.

    Args:
        case: network and images.
        run: options, settings and times.
        findings: what the stages came to.
    """
    detection, repairs, audit, config = findings.detection, findings.repairs, findings.audit, run.config
    images = case.images
    found = findings.decision not in ("no-backdoor-evidence", "inconclusive")
    targets = tuple(triggers.bank.target for triggers in audit.data.triggers) if found else ()
    return Report(
        decision=findings.decision,
        headline=headline(findings, images),
        reason=reason(findings, images, config),
        warning=warning(findings, images, config.max_acc_drop),
        next_steps=next_steps(findings, config),
        notes=(
            *case.doubts,
            *further_copies(case.victim.checkpoint, findings.decision),
            *notes(detection, repairs, images),
            *repaired_notes(findings),
        ),
        target_classes=targets,
        target_name=case.name(targets[0]) if targets else None,
        model=_model(case.victim, config),
        data=_data(case, config),
        detection=_detection(detection, repairs, case),
        before=audit.before,
        after=audit.after,
        pruning=findings.pruning,
        clean_reference=_reference(findings),
        pruned=findings.mask.pruned(),
        units=case.victim.units,
        budget=_budget(repairs, run.seconds),
        timings=dict(run.monitor.seconds),
        config=named(config),
        preset=run.preset,
        task="verify" if config.verify else "defend" if config.repair else "scan",
        tuned=findings.tuned,
        shrunk=findings.shrunk,
        verification=findings.verification,
    )


def _reference(findings: Findings) -> ReferenceSection:
    reference = findings.reference
    shares = {name: reference.share(family) for name, family in findings.audit.data.families.items()}
    return ReferenceSection(reference.networks, reference.version, shares)


def _model(victim: Victim, config: DefendConfig) -> ModelSection:
    return ModelSection(
        path=None if config.model is None else name_of(config.model),
        arch=None if victim.arch is None else arch_name(victim.arch),
        input_shape=victim.input_shape,
        classes=victim.classes,
        layers=tuple(PrunableLayer(layer.name, layer.units) for layer in victim.layers),
        not_prunable=tuple(SkippedLayer(name, why) for name, why in victim.skipped),
    )


def _data(case: Case, config: DefendConfig) -> DataSection:
    clean = case.clean
    return DataSection(
        path=None if config.data is None else name_of(config.data),
        images=len(clean.build) + len(clean.score) + len(clean.holdout),
        build=len(clean.build),
        score=len(clean.score),
        holdout=len(clean.holdout),
        normalisation=str(case.victim.normalisation),
        evaluation=None if config.eval_data is None else name_of(config.eval_data),
    )


def _detection(detection: Detection | None, repairs: Repairs | None, case: Case) -> DetectionSection | None:
    if detection is None:
        return None
    probabilities = detection.probabilities
    return DetectionSection(
        probability=probabilities.backdoor,
        per_class=probabilities.per_class,
        class_names=tuple(case.name(k) for k in range(case.victim.classes)),
        evidence=by_detector(probabilities.evidence),
        anomaly_index=detection.scores.anomaly_index,
        backdoor_from=detection.verdict.backdoor_from,
        none_below=detection.verdict.none_below,
        passes=tuple(each.probabilities.per_class for each in detection.passes),
        after_repairs=tuple(each.probabilities.per_class for each in repairs.passes_after) if repairs else (),
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
