"""Repair a suspicious classifier: `python -m onp.defend --model FILE --arch SPEC --norm NAME --data PATH --out DIR`.

Without arguments it repairs the embedded example.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import nn

from onp import progress
from onp.audit import der, figures
from onp.bank import Bank, Scan, TriggerBank, build_bank, refine_steps, scan, scan_steps
from onp.cautions import over_budget, undecided
from onp.config import DefendConfig
from onp.data import ImageSet, Splits, joined
from onp.details import Details, details
from onp.errors import InputError
from onp.estimate import WORTH_SAYING, estimate
from onp.html import render
from onp.hub import hub_model, with_hub
from onp.inputs import Case, read_case, with_demo
from onp.mask import Mask
from onp.monitor import Monitor
from onp.output import prepare, write_outputs
from onp.peers import PeerConfig
from onp.presets import PRESETS, Preset
from onp.repair import repair
from onp.report import Report, Tuned
from onp.search import Found, search
from onp.shrink import check_shrinking, shrink
from onp.state import State, kept_in
from onp.tally import TriggeredBatch
from onp.trouble import NO_MEMORY, trouble
from onp.tune import check_tuning, tune_pruned
from onp.victim import Victim

FRESH = 1000  # added to the seed of the bank that audits
TUNING_PASSES = 1_000_000  # above what any tuning method's recipe asks for with a few hundred images
REMOVED = 0.5  # share of the surrogate ASR that a repair must take away to be called one


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
        problem = trouble(error)
        if problem is None:
            raise
        if config.device != "auto" or problem == NO_MEMORY:
            kept = " What was worked out is kept: give the same command with --resume." if config.out is not None else ""
            raise InputError(f"{problem}; use fewer images or --device cpu.{kept}") from error
        progress.say(f"{problem}; going on without it.")
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
    wanted = ("preset", "max_acc_drop", "seed", "arch", "norm", "image_size", "trigger", "triggered_data", "tune")
    model = hashlib.sha256()
    for tensor in case.victim.model.state_dict().values():
        model.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    images = hashlib.sha256(case.clean.images.contiguous().numpy().tobytes())
    images.update(case.clean.labels.numpy().tobytes())
    facts: dict[str, object] = {name.replace("_", "-"): getattr(config, name) for name in wanted}
    return facts | {"model": model.hexdigest(), "data": images.hexdigest()}


def run(case: Case, config: DefendConfig, preset: Preset, monitor: Monitor) -> Outcome:
    """The pipeline itself: evidence, triggers, search, repair, audit; reads and writes no file."""
    victim, clean, splits, bank = case.victim, case.clean, case.splits, case.known
    check_tuning(config.tune, victim)
    ahead = estimate(victim, splits, preset, search_only=bank is not None)
    if ahead.look + ahead.repair >= WORTH_SAYING:
        quicker = "a GPU is" if config.preset == "fast" else "--preset fast or a GPU are"
        monitor.say(f"About {ahead}, on {victim.device}; {quicker} quicker.")
    found_by = None
    if bank is None:
        found_by = look(victim, splits, config, preset, monitor)
        name, loudest, threshold = clean.name(found_by.suspect), max(found_by.suspicion), preset.bank.threshold
        monitor.say(f"Class {name} stands out by {loudest:.1f}; from {threshold} on one counts as the target of a backdoor.")
        if loudest >= threshold:
            stage = "fitting surrogate triggers"
            bank = _bank(stage, victim, found_by, found_by.suspect, splits, config.seed, preset, monitor)
    found = None if bank is None else _search(victim, splits, bank, found_by, config, preset, monitor)

    decision, reason = _decide(found_by, found, clean)
    mask = found.mask if found is not None and decision == "repaired" else Mask.of(victim)
    repaired = repair(victim, mask) if decision == "repaired" else victim
    fresh: list[TriggeredBatch] = []
    audit_bank = bank
    if bank is not None:
        if found_by is not None:
            stage = "fitting fresh triggers for the audit"
            audit_bank = _bank(stage, victim, found_by, bank.target, splits, config.seed + FRESH, preset, monitor)
        assert audit_bank is not None
        fresh = audit_bank.batches(victim, splits, "holdout")
    target = bank.target if bank else None
    with monitor.stage("measuring the result"):
        before = figures(victim, splits.holdout, fresh, target, case.evaluation, case.attack)
        after = figures(repaired, splits.holdout, fresh, target, case.evaluation, case.attack)
        shown = details(victim, repaired, mask, splits.holdout, audit_bank, fresh, case.evaluation, case.attack)
    tuned = None
    if config.tune is not None and decision == "repaired":
        with monitor.stage("training the repaired network"):
            peer = PeerConfig(seed=config.seed, passes=TUNING_PASSES, quiet=config.quiet or config.json)
            repaired = tune_pruned(repaired, mask, config.tune, joined(splits.build, splits.score), peer)
            measured = figures(repaired, splits.holdout, fresh, target, case.evaluation, case.attack)
        tuned = Tuned(config.tune, measured, der(before, measured))
    shrunk = None
    if config.shrink and decision == "repaired":
        with monitor.stage("taking pruned channels out"):
            shrunk = shrink(repaired, mask)
    suspicion = found_by.suspicion if found_by else ()
    cautions = over_budget(before.acc, after.acc, config.max_acc_drop), undecided(suspicion, preset.bank.threshold, clean)
    seconds = sum(monitor.seconds.values())
    evaluations = found.evaluations if found else 0
    report = Report(
        decision=decision,
        reason=reason,
        warning=" ".join(filter(None, cautions)) or None,
        target_class=target,
        target_name=None if target is None else clean.name(target),
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
        evidence=_evidence(found_by, found),
        before=before,
        after=after,
        der=der(before, after),
        pruned=mask.pruned(),
        units=victim.units,
        budget={
            "evaluations": evaluations,
            "masks_per_second": evaluations / found.seconds if found and found.seconds else 0.0,
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
    if not 0 <= config.max_acc_drop < 1:
        raise InputError(f"--max-acc-drop is a share of the images, 0.01 for one point, not {config.max_acc_drop}.")
    preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
    return preset.with_trigger_given() if config.trigger or config.triggered_data else preset


def look(victim: Victim, splits: Splits, config: DefendConfig, preset: Preset, monitor: Monitor) -> Scan:
    with monitor.stage("looking for a trigger", scan_steps(preset.bank)) as bar:
        return scan(victim, splits.build, splits.score, config.seed, preset.bank, bar.advance)


def _bank(
    stage: str, victim: Victim, found: Scan, target: int, splits: Splits, seed: int, preset: Preset, monitor: Monitor
) -> TriggerBank:
    with monitor.stage(stage, refine_steps(preset.bank)) as bar:
        models = (victim.logits,)
        return build_bank(victim, models, found, target, splits.build, splits.score, seed, preset.bank, bar.advance)


def _search(
    victim: Victim, splits: Splits, bank: Bank, found: Scan | None, config: DefendConfig, preset: Preset, monitor: Monitor
) -> Found:
    with monitor.stage("searching for the mask", preset.search.agent.max_evaluations) as bar:
        return search(victim, splits, bank, found, config.seed, preset.bank, preset.search, monitor.steps(bar))


def _decide(found_by: Scan | None, found: Found | None, clean: ImageSet) -> tuple[str, str]:
    """The decision and one sentence; only the surrogates and the clean images decide."""
    if found is None:
        assert found_by is not None
        loudest = max(found_by.suspicion)
        return "no-backdoor-evidence", (
            f"No class is reached anomalously cheaply (highest suspicion {loudest:.1f}, class "
            f"{clean.name(found_by.suspect)}); the model was not touched."
        )
    name, outcome = clean.name(found.bank.target), found.results[-1].outcome
    left = float(outcome.asr)
    if not bool(outcome.acceptable) or left > REMOVED * found.asr_before:
        return "not-repairable", (
            f"Triggers for class {name} exist, but no mask within the accuracy budget removes them "
            f"(surrogate ASR {100 * left:.0f} % at best); the model was not touched."
        )
    pruned = int((~found.mask.keep).sum())
    return "repaired", f"A trigger leads to class {name}; {pruned} unit{'s' * (pruned != 1)} carried it."


def _evidence(found_by: Scan | None, found: Found | None) -> dict[str, object]:
    evidence: dict[str, object] = {}
    if found_by is not None:
        evidence = {"suspicion": found_by.suspicion, "witnesses": found_by.witnesses}
    if found is not None and isinstance(found.bank, TriggerBank):
        names = ("family", "weight", "evidence", "success", "cost")
        evidence["surrogates"] = [{name: getattr(each, name) for name in names} for each in found.bank.surrogates]
    return evidence


if __name__ == "__main__":
    from onp.cli import main

    sys.exit(main())
