"""Repair a suspicious classifier: `python -m onp.defend --model FILE --arch SPEC --norm NAME --data PATH --out DIR`.

Without arguments it repairs the embedded example.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import nn

from onp import progress
from onp.data.images import ImageSet, joined
from onp.defend.config import DefendConfig
from onp.defend.estimate import WORTH_SAYING, affordable, estimate
from onp.defend.inputs import Case, read_case, with_demo
from onp.defend.monitor import Monitor
from onp.defend.outputs import prepare, write_outputs
from onp.defend.presets import PRESETS, Preset
from onp.defend.report.audit import der, figures, images_of
from onp.defend.report.diagnostics import Audit, Details, details
from onp.defend.report.page import render
from onp.defend.report.report import Report, Tuned
from onp.defend.report.warnings import further_copies, warning
from onp.defend.rounds import (
    Look,
    Round,
    Rounds,
    bank_config,
    evidence,
    fit_bank,
    look,
    recall_of,
    repair_classes,
    search_mask,
    told,
)
from onp.detect.bank import Bank
from onp.errors import InputError, device_error
from onp.model.hub_config import hub_model, with_hub
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.shrink import check_shrinking, shrink
from onp.model.tuning import TuneConfig, check_tuning, tune_pruned
from onp.model.victim import Victim
from onp.numerics import check_max_acc_drop, check_seed, strict_float32
from onp.resume import State, kept_in, spent_before

FRESH = 1000  # added to the seed of the bank that audits
TUNING_PASSES = 1_000_000  # above what any tuning method's recipe asks for with a few hundred images


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `defend` returns: the report, for a repair the mask and the repaired (and tuned) victim, else the untouched one."""

    report: Report
    details: Details
    mask: Mask
    victim: Victim

    @property
    def network(self) -> nn.Module:
        """The repaired network, in eval mode, float32; a copy of the given one where nothing was repaired."""
        return self.victim.model

    def html(self) -> str:
        """The page: one self-contained document."""
        return render(self.report, self.details)

    def __str__(self) -> str:
        return self.report.to_text()

    def _repr_html_(self) -> str:
        # In a frame of its own, so that the styles of page and notebook leave each other alone.
        return (
            f'<iframe title="onp report" style="width: 100%; height: 40em; border: 0" srcdoc="{escape(self.html())}"></iframe>'
        )


def defend(config: DefendConfig) -> Outcome:
    """Look for a backdoor and repair it; writes the files when `config.out` is given.

    Where `config.device` is auto and the GPU fails, the run goes on without it.

    Raises:
        InputError: something given cannot be used, or the machine has too little memory or disk.
    """
    config = with_hub(with_demo(config))
    if config.quiet and config.verbose:
        raise InputError("Give either --quiet or --verbose, not both.")
    if config.resume and config.out is None:
        raise InputError("--resume needs --out, the folder of the run to continue.")
    if config.out is not None:
        prepare(Path(config.out), config.resume)
    if config.shrink:
        check_shrinking()
    preset = preset_of(config)
    monitor = Monitor(config.quiet, config.verbose, config.json, config.tensorboard)
    try:
        return _defend(config, preset, monitor)
    except RuntimeError as error:
        problem = device_error(error)
        if problem is None:
            raise
        if config.device != "auto" or not problem.on_gpu:
            kept = " What was worked out is kept: give the same command with --resume." if config.out is not None else ""
            raise InputError(f"{problem.sentence}; use fewer images or --device cpu.{kept}") from error
        progress.say(f"{problem.sentence}; going on without it.")
    # Outside the handler, so that the failed run's memory is free.
    return _defend(dataclasses.replace(config, device="cpu"), preset, monitor)


def _defend(config: DefendConfig, preset: Preset, monitor: Monitor) -> Outcome:
    if hub := hub_model(config.arch):
        monitor.say(f"{hub.path}: {hub}; images of {config.image_size} pixels, normalised with {config.norm}.")
    with monitor.stage("reading the model and the images"):
        case = read_case(config)
    state = None if config.out is None else State(Path(config.out), _facts(config, case))
    with kept_in(state):
        outcome = run(case, config, preset, monitor)
    monitor.pictures(outcome.details.pictures)
    if config.out is not None:
        write_outputs(Path(config.out), outcome.report, outcome.details, outcome.mask, outcome.victim)
    if state is not None:
        state.remove()
    return outcome


def _facts(config: DefendConfig, case: Case) -> dict[str, object]:
    """What two runs must have in common for one to continue the other."""
    wanted = ("preset", "max_acc_drop", "seed", "arch", "norm", "image_size", "tune")
    model = hashlib.sha256()
    for tensor in case.victim.model.state_dict().values():
        model.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    images = hashlib.sha256(case.clean.images.contiguous().numpy().tobytes())
    images.update(case.clean.labels.numpy().tobytes())
    trigger = None
    if case.known is not None:
        (batch,) = case.known.batches(case.victim, case.splits, "score")
        trigger = hashlib.sha256(batch.images.cpu().contiguous().numpy().tobytes()).hexdigest()
    facts: dict[str, object] = {name.replace("_", "-"): getattr(config, name) for name in wanted}
    return facts | {"model": model.hexdigest(), "data": images.hexdigest(), "trigger": trigger}


@strict_float32()
def run(case: Case, config: DefendConfig, preset: Preset, monitor: Monitor) -> Outcome:
    """The pipeline itself: evidence, triggers, search, repair, audit; reads and writes no file."""
    victim, clean, splits, bank = case.victim, case.clean, case.splits, case.known
    check_tuning(config.tune, victim)
    preset = affordable(victim, preset) if config.preset == "fast" else preset
    ahead = estimate(victim, splits, preset, search_only=bank is not None)
    if ahead.look + ahead.repair >= WORTH_SAYING:
        quicker = "a GPU is" if config.preset == "fast" else "--preset fast or a GPU are"
        monitor.say(f"About {ahead}, on {victim.device}; {quicker} quicker.")
    seen = None
    if bank is None:
        seen = look(victim, splits, config, preset, monitor)
        name, loudest, threshold = clean.name(seen.scan.suspect), max(seen.scan.suspicion), preset.bank.threshold
        monitor.say(f"Class {name} stands out by {loudest:.1f}; from {threshold} on one counts as the target of a backdoor.")
        repairs = repair_classes(victim, splits, seen, config, preset, monitor)
    else:
        found = search_mask(victim, splits, bank, None, config.seed, preset, monitor)
        repairs = Rounds((Round(bank.target, found),), (), found.mask)

    decision, reason = _decide(seen, repairs, clean, config.max_acc_drop)
    mask = repairs.mask if repairs is not None and decision == "repaired" else Mask.of(victim)
    repaired = repair(victim, mask) if decision == "repaired" else victim
    audits = _audits(case, seen, repairs, config, preset, monitor)
    fresh = [batch for audit in audits for batch in audit.batches]
    target = repairs.rounds[0].target if repairs else None
    images = images_of(splits.holdout, fresh, case.evaluation, case.attack)
    with monitor.stage("measuring the result", images if repaired is victim else 2 * images) as bar:
        before = figures(victim, splits.holdout, fresh, target, case.evaluation, case.attack, bar.advance)
        after = before
        if repaired is not victim:
            after = figures(repaired, splits.holdout, fresh, target, case.evaluation, case.attack, bar.advance)
        shown = details(victim, repaired, mask, splits.holdout, audits, case.evaluation, case.attack, (before, after))
    tuned = None
    if config.tune is not None and decision == "repaired":
        with monitor.stage("training the repaired network"):
            tuning = TuneConfig(seed=config.seed, passes=TUNING_PASSES, quiet=config.quiet or config.json)
            repaired = tune_pruned(repaired, mask, config.tune, joined(splits.build, splits.score), tuning)
            trained = figures(repaired, splits.holdout, fresh, target, case.evaluation, case.attack)
        tuned = Tuned(config.tune, trained, der(before, trained))
    shrunk = None
    if config.shrink and decision == "repaired":
        with monitor.stage("taking pruned channels out"):
            shrunk = shrink(repaired, mask)
    seconds = sum(monitor.seconds.values()) + spent_before()
    searches = [each.found for each in repairs.rounds] if repairs else []
    evaluations, scoring = sum(each.evaluations for each in searches), sum(each.seconds for each in searches)
    report = Report(
        decision=decision,
        reason=reason,
        warning=warning(before, after, case, config.max_acc_drop),
        target_class=target,
        target_name=None if target is None else clean.name(target),
        target_classes=tuple(each.target for each in repairs.rounds) if repairs else (),
        notes=further_copies(victim.checkpoint, decision)
        + (() if seen is None else told(seen, repairs, preset.bank.threshold, clean)),
        model={
            "path": config.model,
            "arch": victim.arch,
            "input_shape": victim.input_shape,
            "classes": victim.classes,
            "layers": [{"name": layer.name, "units": layer.units} for layer in victim.layers],
            "not_prunable": [{"name": name, "reason": why} for name, why in victim.skipped],
        },
        data={
            "path": config.data,
            "images": len(clean),
            "build": len(splits.build),
            "score": len(splits.score),
            "holdout": len(splits.holdout),
            "normalisation": str(victim.normalisation),
            "evaluation": config.eval_data,
        },
        evidence=evidence(seen, repairs),
        before=before,
        after=after,
        der=der(before, after),
        pruned=mask.pruned(),
        units=victim.units,
        budget={
            "evaluations": evaluations,
            "masks_per_second": evaluations / scoring if scoring else 0.0,
            "wall_seconds": seconds,
        },
        timings=dict(monitor.seconds),
        config=dataclasses.asdict(config) | {"preset": dataclasses.asdict(preset)},
        seed=config.seed,
        tuned=tuned,
        shrunk=shrunk,
    )
    return Outcome(report, shown, mask, repaired)


def preset_of(config: DefendConfig) -> Preset:
    if config.preset not in PRESETS:
        raise InputError(f"There is no preset '{config.preset}'; choose one of {', '.join(PRESETS)}.")
    check_max_acc_drop(config.max_acc_drop)
    check_seed(config.seed)
    preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
    return preset.with_trigger_given() if config.trigger or config.triggered_data else preset


def _audits(
    case: Case, seen: Look | None, repairs: Rounds | None, config: DefendConfig, preset: Preset, monitor: Monitor
) -> list[Audit]:
    """Triggered holdout images for each class that was to be repaired: of the known trigger, or of freshly fitted ones."""
    if repairs is None:
        return []
    audits: list[Audit] = []
    for each in repairs.rounds:
        bank: Bank | None = case.known
        if seen is not None:
            now = dataclasses.replace(preset, bank=bank_config(seen, preset))
            stage = "fitting fresh triggers for the audit"
            known = None if audits else recall_of(case.victim, case.splits, now)
            seed = config.seed + FRESH
            bank = fit_bank(stage, case.victim, seen.scan, each.target, case.splits, seed, now, monitor, known)
        assert bank is not None
        batches = bank.batches(case.victim, bank.images(case.splits).holdout)
        if len(repairs.rounds) > 1:
            to = f" to {case.clean.name(each.target)}"
            batches = [dataclasses.replace(batch, family=batch.family + to) for batch in batches]
        audits.append(Audit(bank, batches))
    return audits


def _decide(seen: Look | None, repairs: Rounds | None, clean: ImageSet, max_acc_drop: float) -> tuple[str, str]:
    """The decision and why; only the surrogates and the clean images decide."""
    if repairs is None:
        assert seen is not None
        loudest = max(seen.scan.suspicion)
        return "no-backdoor-evidence", (
            f"No class is reached anomalously cheaply (highest suspicion {loudest:.1f}, class "
            f"{clean.name(seen.scan.suspect)}); the model was not touched."
        )
    *done, last = (clean.name(each.target) for each in repairs.rounds)
    if not repairs.works:
        before = f"Class {' and '.join(done)} could be repaired, but class {last} stands out too. " if done else ""
        return "not-repairable", (
            f"{before}Triggers for class {last} exist, but no mask within the accuracy budget removes them "
            f"(surrogate ASR {100 * float(repairs.rounds[-1].found.results[-1].outcome.asr):.0f} % at best); "
            f"the model was not touched.{repairs.advice(max_acc_drop)}"
        )
    pruned = int((~repairs.mask.keep).sum())
    units = f"{pruned} unit{'s' * (pruned != 1)}"
    if done:
        return "repaired", f"Triggers lead to class {', '.join(done)} and to class {last}; {units} carried them."
    return "repaired", f"A trigger leads to class {last}; {units} carried it."
