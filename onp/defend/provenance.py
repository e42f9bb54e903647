"""Where a report comes from: date, version, what the verdict learned from, and the SHA-256 of every file given or written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

from onp.data.array_files import is_idx, labels_beside
from onp.defend.config import DefendConfig
from onp.defend.digests import FileState
from onp.defend.report.names import is_file_of_names, name_of
from onp.defend.report.sections import FileDigest, Provenance
from onp.files import file_kind
from onp.model.hub_config import HubModel, companions
from onp.model.state_dicts import file_and_key
from onp.version import VERSION

IMAGES = {
    "data": "data",
    "triggered_data": "triggered data",
    "eval_data": "evaluation data",
    "eval_triggered_data": "triggered evaluation data",
}
TRIGGERS = {"trigger": "trigger", "eval_trigger": "evaluation trigger"}
LIMIT = 2**26  #: bytes of a learned file that are read


@dataclass(frozen=True, eq=False)
class Input:
    """A file or folder that a run reads, as it was before that."""

    role: str
    name: str
    state: FileState


def inputs_of(config: DefendConfig, hub: HubModel | None = None) -> tuple[Input, ...]:
    """The files that the options name, as they are before they are read; what does not exist is left out.

    Args:
        config: the options, resolved.
        hub: the model that a `config.json` describes, where it was read.

    Raises:
        InputError: a folder cannot be walked, or holds far too many files.
    """
    found: list[tuple[str, str | Path]] = []
    if config.model is not None:
        model = file_and_key(config.model)[0]
        found.append(("model", model))
        beside = companions(model, hub) if file_kind(model) == "file" else []
        found += [("config", path) for path in dict.fromkeys([*([hub.path] if hub else []), *beside])]
        found += [("mask", model.parent / "mask.json")] if config.verify else []
    found += [("code", path) for path in _code(config.arch)]
    found += [(role, path) for option, role in TRIGGERS.items() if (path := getattr(config, option)) is not None]
    found += [("class order", order)] if (order := config.class_order) and is_file_of_names(order) else []
    inputs = [Input(role, name_of(path), FileState(Path(path))) for role, path in found if file_kind(Path(path)) == "file"]
    for option, role in IMAGES.items():
        if (location := getattr(config, option)) is not None:
            inputs += _images(role, location)
    return tuple(each for each in inputs if each.state.holds_files)


def digests(inputs: Iterable[Input]) -> tuple[FileDigest, ...]:
    """The SHA-256 of what was read.

    Raises:
        InputError: a file is not the one that was there when `inputs_of` looked.
    """
    return tuple(each.state.digest(each.role, each.name) for each in inputs)


def provenance(inputs: Iterable[FileDigest], written: Iterable[tuple[str, Path]] = ()) -> Provenance:
    """The section of the report.

    Args:
        inputs: what was read.
        written: (role, path) of the files that exist by now beside the report.
    """
    created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    outputs = tuple(FileState(path).digest(role, name_of(path)) for role, path in written)
    return Provenance(created, VERSION, learned(), tuple(inputs), outputs)


def learned() -> dict[str, str]:
    """By file of `onp.pretrained`: its `version` where it is JSON that has one, else its SHA-256."""
    found = {}
    for each in sorted((files("onp") / "pretrained").iterdir(), key=lambda each: each.name):
        if not each.is_file() or each.name.endswith((".py", ".md")):
            continue
        with each.open("rb") as file:
            content = file.read(LIMIT)
        found[each.name] = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if each.name.endswith(".json"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found[each.name] = str(json.loads(content)["version"])
    return found


def _images(role: str, location: str) -> list[Input]:
    name, _, inner = location.partition("::")
    path = Path(name)
    kind = file_kind(path)
    if kind == "folder" and inner and (path / inner).is_dir():
        return [Input(role, name_of(location), FileState(path / inner))]
    # Other parts, such as a split of a table, have no files of their own.
    found = [Input(role, name_of(name), FileState(path))] if kind in ("file", "folder") else []
    if kind == "file":
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if is_idx(path) and (labels := labels_beside(path)) is not None:
                found.append(Input(f"{role}, labels", name_of(labels), FileState(labels)))
    return found


def _code(arch: str | None) -> list[Path]:
    """The Python file of `package.module:callable`, where it lies below the current folder."""
    module, colon, _ = (arch or "").partition(":")
    file = Path(*module.split("."))
    return [path for path in (file.with_suffix(".py"), file / "__init__.py") if path.is_file()][:1] if colon and module else []
