"""Names of files without the folders of this machine: what reports and cards may show of the paths that were given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from onp.defend.class_order import LONGEST_PATH
from onp.defend.config import DefendConfig
from onp.files import file_kind
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
    # Bytes of a name that are no UTF-8 cannot be written to a report.
    return f"{bare}{separator}{key.lstrip('/')}".encode(errors="backslashreplace").decode()


def is_file_of_names(class_order: str) -> bool:
    """Whether --class-order is a file, not a list of names, which may be longer than a path can be."""
    return len(class_order) <= LONGEST_PATH and file_kind(Path(class_order)) == "file"


def arch_name(arch: str) -> str:
    """An architecture as it was given, `config:PATH` with the name of the file only."""
    return f"{SPEC}{name_of(arch.removeprefix(SPEC))}" if arch.startswith(SPEC) else arch


def named(config: DefendConfig) -> DefendConfig:
    """The options with names in place of paths."""
    names: dict[str, Any] = {option: name_of(given) for option in PATHS if (given := getattr(config, option)) is not None}
    order, arch = config.class_order, config.arch
    if order is not None and is_file_of_names(order):
        names["class_order"] = name_of(order)
    return dataclasses.replace(config, arch=None if arch is None else arch_name(arch), **names)
