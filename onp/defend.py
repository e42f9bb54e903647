"""Repair a suspicious classifier: `python -m onp.defend --model FILE --arch SPEC --norm NAME --data PATH --out DIR`.

Without arguments it repairs the embedded example.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from onp import progress
from onp.audit import TrueAttack, der, figures, find_target
from onp.bank import Bank, Scan, TriggerBank, build_bank, refine_steps, scan, scan_steps
from onp.bundle.demos import ARCH, DEFAULT, NORM, demo
from onp.config import DefendConfig
from onp.data import ImageSet, Normalisation, Splits, check_for, load_images, split
from onp.errors import InputError
from onp.given import given_images, given_trigger
from onp.mask import Mask
from onp.metrics import Share, accuracy, predictions
from onp.output import prepare, write_outputs
from onp.peers import PeerConfig
from onp.peers.config import joined
from onp.presets import PRESETS, Preset
from onp.repair import repair
from onp.report import Report, Tuned
from onp.search import Found, search
from onp.triggers import Trigger, load_trigger
from onp.tune import check_tuning, tune_pruned
from onp.victim import Victim, load_victim

FRESH = 1000  # added to the seed of the bank that audits
USELESS = 0.2  # of the way from chance to certainty: a model below that, or its data, is not what the user thinks
TUNING_PASSES = 1_000_000  # above what any tuning method's recipe asks for with a few hundred images
REMOVED = 0.5  # share of the surrogate ASR that a repair must take away to be called one


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `defend` returns: the report, for a repair the mask and the repaired (and tuned) victim, else the untouched one."""

    report: Report
    mask: Mask
    victim: Victim


def defend(config: DefendConfig) -> Outcome:
    """Look for a backdoor and repair it; writes the files when `config.out` is given.

    Raises:
        InputError: something given cannot be used.
    """
    start = time.monotonic()
    config = _with_demo(config)
    if config.out is not None:
        prepare(Path(config.out))
    preset = _preset(config)
    victim, clean = _load(config)
    check_tuning(config.tune, victim)
    splits = split(clean, config.seed)
    bank = _known_trigger(config, victim, clean, splits)
    evaluation, attack = _measurement(config, victim, clean)

    found_by = None
    if bank is None:
        found_by = _scan(victim, splits, config, preset)
        if max(found_by.suspicion) >= preset.bank.threshold:
            bank = _bank(victim, found_by, found_by.suspect, splits, config.seed, config, preset)
    found = None if bank is None else _search(victim, splits, bank, found_by, config, preset)

    decision, reason = _decide(found_by, found, clean)
    mask = found.mask if found is not None and decision == "repaired" else Mask.of(victim)
    repaired = repair(victim, mask) if decision == "repaired" else victim
    fresh = []
    if bank is not None:
        audit_bank = (
            bank if found_by is None else _bank(victim, found_by, bank.target, splits, config.seed + FRESH, config, preset)
        )
        fresh = audit_bank.batches(victim, splits, "holdout")
    target = bank.target if bank else None
    before = figures(victim, splits.holdout, fresh, target, evaluation, attack)
    after = figures(repaired, splits.holdout, fresh, target, evaluation, attack)
    tuned = None
    if config.tune is not None and decision == "repaired":
        repaired = tune_pruned(
            repaired,
            mask,
            config.tune,
            joined(splits.build, splits.score),
            PeerConfig(seed=config.seed, passes=TUNING_PASSES, quiet=config.quiet),
        )
        measured = figures(repaired, splits.holdout, fresh, target, evaluation, attack)
        tuned = Tuned(config.tune, measured, der(before, measured))
    seconds = time.monotonic() - start
    evaluations = found.evaluations if found else 0
    report = Report(
        decision=decision,
        reason=reason,
        warning=over_budget(before.acc, after.acc, config.max_acc_drop),
        target_class=target,
        target_name=None if target is None else clean.class_names[target],
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
        config=dataclasses.asdict(config) | {"preset": dataclasses.asdict(preset)},
        seed=config.seed,
        tuned=tuned,
    )
    if config.out is not None:
        write_outputs(Path(config.out), report, mask, repaired)
    return Outcome(report, mask, repaired)


def _with_demo(config: DefendConfig) -> DefendConfig:
    """Fill in the embedded victim where no model was given."""
    if config.model is not None:
        if config.demo is not None:
            raise InputError("Give either --model or --demo, not both.")
        return config
    if config.arch or config.data or config.norm:
        raise InputError("There is no --model; give the checkpoint to repair, or nothing at all for the embedded example.")
    chosen = demo(config.demo or DEFAULT)
    trigger = str(chosen.trigger) if chosen.trigger else None
    return dataclasses.replace(
        config,
        demo=chosen.name,
        model=str(chosen.model),
        arch=ARCH,
        norm=NORM,
        data=str(chosen.clean),
        eval_data=config.eval_data or str(chosen.evaluation),
        eval_trigger=config.eval_trigger or trigger,
    )


def _preset(config: DefendConfig) -> Preset:
    if config.preset not in PRESETS:
        raise InputError(f"There is no preset '{config.preset}'; choose one of {', '.join(PRESETS)}.")
    if not 0 <= config.max_acc_drop < 1:
        raise InputError(f"--max-acc-drop is a share of the images, 0.01 for one point, not {config.max_acc_drop}.")
    return PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)


def _load(config: DefendConfig) -> tuple[Victim, ImageSet]:
    """The victim and the clean images, checked against each other."""
    if config.data is None:
        raise InputError(
            "Give a few hundred clean images with --data: a folder with one sub-folder per class, .npz, IDX or a tar."
        )
    if config.norm is None:
        raise InputError("Say with --norm how the model's images are normalised: a preset such as cifar10, or MEAN/STD.")
    normalisation = Normalisation.parse(config.norm)
    clean = load_images(config.data, size=config.image_size)
    device = _device(config.device)
    shape = (clean.images.shape[1], clean.images.shape[2], clean.images.shape[3])
    victim = load_victim(str(config.model), config.arch, normalisation, shape, device)
    check_for(clean, victim.classes, victim.input_shape)
    guess = predictions(victim.model, victim.normalisation(clean.pixels().to(device)))
    acc, chance = accuracy(clean.labels, guess.cpu()).value, 1 / victim.classes
    if acc < chance + USELESS * (1 - chance):
        raise InputError(
            f"The model is right on only {100 * acc:.0f} % of the clean images; check --norm and the order of the classes."
        )
    return victim, clean


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"There is no device '{name}'; choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("This machine has no usable CUDA device; use --device cpu.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _images_like(path: str, victim: Victim, clean: ImageSet, config: DefendConfig, labelled: bool = True) -> ImageSet:
    images = load_images(path, size=config.image_size, channels=victim.input_shape[0], labelled=labelled)
    images = images.relabelled(clean.class_names)
    if tuple(images.images.shape[1:]) != victim.input_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.images.shape[1:], victim.input_shape))
        raise InputError(f"The images in {path} are {found}, those of the model {wanted}; give images of that size.")
    return images


def _known_trigger(config: DefendConfig, victim: Victim, clean: ImageSet, splits: Splits) -> Bank | None:
    """The bank of a trigger that the user has, as a function or as images; None when it must be found."""
    if config.trigger and config.triggered_data:
        raise InputError("Give either --trigger or --triggered-data, not both.")
    if config.trigger:
        known = load_trigger(config.trigger)
        return given_trigger(known, find_target(victim, splits.score, known))
    if config.triggered_data:
        return given_images(victim, _images_like(config.triggered_data, victim, clean, config, labelled=False), config.seed)
    return None


def _measurement(config: DefendConfig, victim: Victim, clean: ImageSet) -> tuple[ImageSet | None, TrueAttack | None]:
    """What only the report may see."""
    if config.eval_data is None:
        if config.eval_trigger is not None:
            raise InputError("--eval-trigger needs --eval-data, the images to put the trigger on.")
        return None, None
    evaluation = _images_like(config.eval_data, victim, clean, config)
    if config.eval_trigger is None:
        return evaluation, None
    true_trigger: Trigger = load_trigger(config.eval_trigger)
    return evaluation, TrueAttack(true_trigger, find_target(victim, evaluation, true_trigger))


def _scan(victim: Victim, splits: Splits, config: DefendConfig, preset: Preset) -> Scan:
    with progress.stage("looking for a trigger", scan_steps(preset.bank), config.quiet) as bar:
        return scan(victim, splits.build, splits.score, config.seed, preset.bank, bar.advance)


def _bank(
    victim: Victim, found: Scan, target: int, splits: Splits, seed: int, config: DefendConfig, preset: Preset
) -> TriggerBank:
    with progress.stage("fitting surrogate triggers", refine_steps(preset.bank), config.quiet) as bar:
        models = (victim.logits,)
        return build_bank(victim, models, found, target, splits.build, splits.score, seed, preset.bank, bar.advance)


def _search(victim: Victim, splits: Splits, bank: Bank, found: Scan | None, config: DefendConfig, preset: Preset) -> Found:
    with progress.stage("searching for the mask", preset.search.agent.max_evaluations, config.quiet) as bar:
        return search(victim, splits, bank, found, config.seed, preset.bank, preset.search, bar.advance)


def _decide(found_by: Scan | None, found: Found | None, clean: ImageSet) -> tuple[str, str]:
    """The decision and one sentence; only the surrogates and the clean images decide."""
    if found is None:
        assert found_by is not None
        loudest = max(found_by.suspicion)
        return "no-backdoor-evidence", (
            f"No class is reached anomalously cheaply (highest suspicion {loudest:.1f}, class "
            f"{clean.class_names[found_by.suspect]}); the model was not touched."
        )
    name, outcome = clean.class_names[found.bank.target], found.results[-1].outcome
    left = float(outcome.asr)
    if not bool(outcome.acceptable) or left > REMOVED * found.asr_before:
        return "not-repairable", (
            f"Triggers for class {name} exist, but no mask within the accuracy budget removes them "
            f"(surrogate ASR {100 * left:.0f} % at best); the model was not touched."
        )
    return "repaired", f"A trigger leads to class {name}; {len(found.mask.keep) - int(found.mask.keep.sum())} units carried it."


def over_budget(before: Share, after: Share, max_acc_drop: float) -> str | None:
    """A sentence where images that the search never saw lost more accuracy than allowed; None where they did not."""
    lost = before.value - after.value
    if lost <= max_acc_drop + 1e-9:
        return None
    return (
        f"Images that the search never saw lost {100 * lost:.1f} points of accuracy (n = {after.n}), more than the allowed "
        f"{100 * max_acc_drop:g}; give more clean images or lower --max-acc-drop."
    )


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
