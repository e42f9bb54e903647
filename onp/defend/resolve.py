"""From the options as given to those of the run: the embedded example, a `config.json` beside the model, the preset."""

from __future__ import annotations

import dataclasses

from onp.defend.config import DefendConfig
from onp.defend.demos import ARCH, DEFAULT, NORM, demo
from onp.defend.presets import PRESETS, Preset
from onp.defend.sanity import check_expect_acc
from onp.errors import InputError
from onp.model.hub_config import CONFIG, SPEC, HubModel, hub_model, read_config, weights_in
from onp.model.shrink import check_shrinking
from onp.model.state_dicts import file_and_key
from onp.numerics import check_max_acc_drop, check_seed


def resolve(config: DefendConfig) -> tuple[DefendConfig, HubModel | None]:
    """Fill in what the options leave to other files, and check those that exclude each other.

    Args:
        config: as it was given.

    Returns:
        The options of the run, and the model that a `config.json` describes where that is its architecture.

    Raises:
        InputError: options that do not go together, or a `config.json` that cannot be used.
    """
    if config.quiet and config.verbose:
        raise InputError("Give either --quiet or --verbose, not both.")
    if config.resume and config.out is None:
        raise InputError("--resume needs --out, the folder of the run to continue.")
    of_repairs = "--tune" if config.tune else "--shrink" if config.shrink else None
    without = "--verify" if config.verify else None if config.repair else "--no-repair"
    if of_repairs and without:
        raise InputError(f"{of_repairs} needs a repair; leave it out, or {without}.")
    config, hub = with_hub(with_demo(config))
    if config.shrink:
        check_shrinking()
    return config, hub


def with_demo(config: DefendConfig) -> DefendConfig:
    """Fill in the embedded victim where no model was given."""
    if config.model is not None:
        if config.demo is not None:
            raise InputError("Give either --model or --demo, not both.")
        return config
    given = [name for name in ("arch", "data", "norm") if getattr(config, name)]
    if given and config.demo:
        raise InputError(f"--demo brings its own network and images; leave out --{given[0]}, or --demo.")
    if given:
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
        eval_trigger=config.eval_trigger or (None if config.eval_triggered_data else trigger),
    )


def with_hub(config: DefendConfig) -> tuple[DefendConfig, HubModel | None]:
    """Fill in what a `config.json` beside the model says and no option does: --arch, --norm and --image-size.

    A folder given as the model stands for the weights in it.

    Returns:
        The options, and the model of that `config.json`, or of another one that --arch names; None for other architectures.

    Raises:
        InputError: a folder without one file of weights, or a config that is needed and cannot be used.
    """
    if config.model is None:
        return config, hub_model(config.arch)
    model, key = file_and_key(config.model)
    path = (model if model.is_dir() else model.parent) / CONFIG
    if not path.exists():
        return config, hub_model(config.arch)
    if model.is_dir():
        model = weights_in(model)
    config = dataclasses.replace(config, model=f"{model}::{key}" if key else str(model))
    if config.arch is not None and config.norm is not None:
        return config, hub_model(config.arch)
    hub, spec = read_config(path), f"{SPEC}{path}"
    norm = None if hub.normalisation is None else str(hub.normalisation)
    own = config.arch not in (None, spec)
    config = dataclasses.replace(
        config,
        arch=config.arch or spec,
        norm=config.norm or norm,
        image_size=config.image_size or hub.size,
    )
    return config, hub_model(config.arch) if own else hub


def preset_of(config: DefendConfig, preset: Preset | None = None) -> Preset:
    """The settings that the options ask for.

    Args:
        config: the options.
        preset: in place of the one that `config.preset` names.

    Raises:
        InputError: there is no such preset, or a number out of range.
    """
    if preset is None and config.preset not in PRESETS:
        raise InputError(f"There is no preset '{config.preset}'; choose one of {', '.join(PRESETS)}.")
    check_max_acc_drop(config.max_acc_drop)
    check_expect_acc(config.expect_acc)
    check_seed(config.seed)
    preset = (preset or PRESETS[config.preset]).with_max_acc_drop(config.max_acc_drop)
    return preset.with_known_trigger() if config.trigger or config.triggered_data else preset
