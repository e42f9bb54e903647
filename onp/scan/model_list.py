"""Lists of models: text with a path a line, or TOML or JSON lines with options for each.

A list is as trusted as the command line: the architectures that it names may be code.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onp.errors import InputError, printable
from onp.files import read_regular
from onp.options import value_type
from onp.scan.config import ScanConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTS = (".txt", ".toml", ".jsonl")
MAX_BYTES = 16 * 2**20
OWN = ("arch", "norm", "image_size", "data", "class_order", "expect_acc")
"""Options that a list may give a model."""
PATHS = ("data", "class_order")
_FIELDS = {field.name: field for field in dataclasses.fields(ScanConfig)}


@dataclass(frozen=True)
class Entry:
    """A model of a list."""

    path: str  #: as written; relative ones start at the list
    options: dict[str, Any] = field(default_factory=dict)  #: by field of ScanConfig


def read_list(path: Path) -> list[Entry]:
    """Read a list of models.

    Args:
        path: .txt: a path a line, empty lines and those that begin with # aside; .toml: a table [[model]] each; .jsonl: an
            object a line. Tables and objects have a `path` and may have `arch`, `norm`, `image-size`, `data`, `class-order`
            and `expect-acc`, as on the command line. Relative paths start at the folder of the list.

    Raises:
        InputError: it cannot be read, or holds something else.

    Example:
        [[model]]
        path = "a/model.safetensors"
        arch = "resnet18:width=32"
    """
    try:
        text = read_regular(path, MAX_BYTES).decode()
        entries = [_entry(path, where, values) for where, values in _tables(path.suffix.lower(), text)]
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The list {path} cannot be read ({printable(error)}); correct it.") from error
    return entries


def _tables(suffix: str, text: str) -> Iterator[tuple[str, Any]]:
    """Where each model stands in the list, and what stands there."""
    if suffix == ".toml":
        table = tomllib.loads(text)
        models = table.pop("model", [])
        if table or not isinstance(models, list):
            raise ValueError("it holds something else than tables [[model]]")
        yield from ((f"model {number}", values) for number, values in enumerate(models, 1))
        return
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or (suffix == ".txt" and line.startswith("#")):
            continue
        yield f"line {number}", {"path": line} if suffix == ".txt" else json.loads(line)


def _entry(path: Path, where: str, values: Any) -> Entry:
    if not isinstance(values, dict) or not isinstance(values.get("path"), str) or not values["path"]:
        raise InputError(f"{where} of the list {path} has no path; give each model one.")
    options = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name == "path":
            continue
        if name not in OWN:
            names = ", ".join(each.replace("_", "-") for each in ("path", *OWN))
            raise InputError(f"{where} of the list {path} gives {printable(key)}; a model has only {names}.")
        wanted = value_type(_FIELDS[name])
        if wanted is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not wanted:
            raise InputError(
                f"{where} of the list {path} gives {key} as {printable(value, 40)}, which is no {wanted.__name__}."
            )
        # As for --class-order itself: a file, or names.
        beside = path.parent / str(value).partition("::")[0]
        options[name] = str(path.parent / str(value)) if name in PATHS and beside.exists() else value
    return Entry(values["path"], options)
