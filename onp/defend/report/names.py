"""Names of files without the folders of this machine: what reports and cards may show of the paths that were given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onp.defend.config import DefendConfig
from onp.model.hub_config import SPEC

PATHS = ("model", "data", "out", "trigger", "triggered_data", "eval_data", "eval_trigger", "eval_triggered_data", "tensorboard")
"""Options that are paths."""


def name_of(location: str | Path) -> str:
    """The last part of PATH or PATH::KEY, the key with it.

    Example:
        >>> name_of("/home/me/net.pt"), name_of("sets/cifar.tar::test"), name_of("clean/")
        ('net.pt', 'cifar.tar::test', 'clean')
    """
    path, separator, key = str(location).partition("::")
    bare = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if bare in ("", ".", ".."):
        bare = Path(path).resolve().name
    return f"{bare}{separator}{key.lstrip('/')}"


def arch_name(arch: str) -> str:
    """An architecture as it was given, `config:PATH` with the name of the file only."""
    return f"{SPEC}{name_of(arch.removeprefix(SPEC))}" if arch.startswith(SPEC) else arch


def named(config: DefendConfig) -> DefendConfig:
    """The options with names in place of paths."""
    names = {option: name_of(given) for option in PATHS if (given := getattr(config, option)) is not None}
    order, arch = config.class_order, config.arch
    if order is not None and Path(order).is_file():
        names["class_order"] = name_of(order)
    return dataclasses.replace(config, arch=None if arch is None else arch_name(arch), **names)
