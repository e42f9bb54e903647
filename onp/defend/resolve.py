"""From the options as they were given to those of the run: what files beside the model say, and no option does."""

from __future__ import annotations

import dataclasses

from onp.defend.config import DefendConfig
from onp.model.hub_config import CONFIG, SPEC, read_config, weights_in
from onp.model.state_dicts import file_and_key


def with_hub(config: DefendConfig) -> DefendConfig:
    """Fill in what a `config.json` beside the model says and no option does: --arch, --norm and --image-size.

    A folder given as the model stands for the weights in it.

    Raises:
        InputError: a folder without one file of weights, or a config that is needed and cannot be used.
    """
    if config.model is None:
        return config
    model, key = file_and_key(config.model)
    path = (model if model.is_dir() else model.parent) / CONFIG
    if not path.exists():
        return config
    if model.is_dir():
        model = weights_in(model)
    location = f"{model}::{key}" if key else str(model)
    if config.arch is not None and config.norm is not None:
        return dataclasses.replace(config, model=location)
    hub = read_config(path)
    norm = None if hub.normalisation is None else str(hub.normalisation)
    return dataclasses.replace(
        config,
        model=location,
        arch=config.arch or f"{SPEC}{path}",
        norm=config.norm or norm,
        image_size=config.image_size or hub.size,
    )
