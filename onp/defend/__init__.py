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
from onp.data.images import joined
from onp.defend.config import DefendConfig
from onp.defend.estimate import WORTH_SAYING, affordable, estimate
from onp.defend.inputs import Case, read_case, with_demo
from onp.defend.monitor import Monitor
from onp.defend.outputs import prepare, write_outputs
from onp.defend.presets import PRESETS, Preset
from onp.defend.report.audit import AuditSet, audit_repair, der, measure_figures
from onp.defend.report.build import Findings, build_report, decide
from onp.defend.report.diagnostics import Diagnostics, diagnose
from onp.defend.report.page import render
from onp.defend.report.report import Report
from onp.defend.report.sections import Tuned
from onp.defend.resolve import with_hub
from onp.defend.rounds import (
    Look,
    Round,
    Rounds,
    bank_config,
    fit_bank,
    look,
    recall_of,
    repair_classes,
    search_mask,
)
from onp.detect.bank import Bank
from onp.errors import InputError, device_error
from onp.model.hub_config import hub_model
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
    diagnostics: Diagnostics
    mask: Mask
    victim: Victim

    @property
    def network(self) -> nn.Module:
        """The repaired network, in eval mode, float32; a copy of the given one where nothing was repaired."""
        return self.victim.model

    def html(self) -> str:
        """The page: one self-contained document."""
        return render(self.report, self.diagnostics)

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
    monitor.pictures((picture.family, picture.triggered) for picture in outcome.diagnostics.pictures)
    if config.out is not None:
        write_outputs(Path(config.out), outcome.report, outcome.diagnostics, outcome.mask, outcome.victim)
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

    decision = decide(repairs)
    mask = repairs.mask if repairs is not None and decision == "repaired" else Mask.of(victim)
    repaired = repair(victim, mask) if decision == "repaired" else victim
    held_out = _held_out_banks(case, seen, repairs, config, preset, monitor)
    data = AuditSet.of(victim, splits, held_out, case.evaluation, case.attack)
    with monitor.stage("measuring the result", data.images if repaired is victim else 2 * data.images) as bar:
        audit = audit_repair(victim, repaired, data, bar.advance)
        diagnostics = diagnose(victim, repaired, mask, audit, [each.found for each in repairs.rounds] if repairs else [])
    tuned = None
    if config.tune is not None and decision == "repaired":
        with monitor.stage("training the repaired network"):
            tuning = TuneConfig(seed=config.seed, passes=TUNING_PASSES, quiet=config.quiet or config.json)
            repaired = tune_pruned(repaired, mask, config.tune, joined(splits.build, splits.score), tuning)
            trained = measure_figures(repaired, data)
        tuned = Tuned(config.tune, trained, der(audit.before, trained))
    shrunk = None
    if config.shrink and decision == "repaired":
        with monitor.stage("taking pruned channels out"):
            shrunk = shrink(repaired, mask)
    seconds = sum(monitor.seconds.values()) + spent_before()
    findings = Findings(seen, repairs, decision, mask, audit, seconds, tuned, shrunk)
    report = build_report(case, config, preset, findings, monitor.seconds)
    return Outcome(report, diagnostics, mask, repaired)


def preset_of(config: DefendConfig) -> Preset:
    if config.preset not in PRESETS:
        raise InputError(f"There is no preset '{config.preset}'; choose one of {', '.join(PRESETS)}.")
    check_max_acc_drop(config.max_acc_drop)
    check_seed(config.seed)
    preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
    return preset.with_trigger_given() if config.trigger or config.triggered_data else preset


def _held_out_banks(
    case: Case, seen: Look | None, repairs: Rounds | None, config: DefendConfig, preset: Preset, monitor: Monitor
) -> list[Bank]:
    """Triggers for each class that was to be repaired, which no decision saw: the known one, or some that are inverted again."""
    if repairs is None:
        return []
    banks: list[Bank] = []
    for each in repairs.rounds:
        bank: Bank | None = case.known
        if seen is not None:
            now = dataclasses.replace(preset, bank=bank_config(seen, preset))
            stage = "fitting fresh triggers for the audit"
            known = None if banks else recall_of(case.victim, case.splits, now)
            seed = config.seed + FRESH
            bank = fit_bank(stage, case.victim, seen.scan, each.target, case.splits, seed, now, monitor, known)
        assert bank is not None
        banks.append(bank)
    return banks
