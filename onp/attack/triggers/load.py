"""Reading a trigger's file, which may come from anybody: what cannot be used is refused in one sentence."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.registry import TRIGGERS
from onp.errors import InputError

TOLERANCE = 1e-4  # by which triggered images may leave [0, 1]: rounding in interpolations


def load_trigger(path: str | Path) -> Trigger:
    """Read a trigger that `Trigger.save` wrote, and try it on one image.

    Raises:
        InputError: the file is missing, is not such a trigger, or holds one that makes no images.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no trigger file at {path}.")
    try:
        kind, fields = _read(path)
        trigger = _tried(TRIGGERS[kind], fields) if kind in TRIGGERS else None
    except Exception as error:  # whatever a damaged or hostile file makes torch, json or a trigger raise
        raise InputError(f"{path} is not a trigger written by onp.attack; give its trigger.safetensors.") from error
    if trigger is None:
        # repr escapes control characters, which a terminal would obey.
        raise InputError(f"{path} is a trigger of the unknown kind {kind[:40]!r}; known are {', '.join(TRIGGERS)}.")
    return trigger


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The kind and the fields in the file."""
    fields: dict[str, Any] = {}
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 (not a dict)
            name, dot, part = key.partition(".")
            if dot:
                fields.setdefault(name, {})[part] = file.get_tensor(key)
            else:
                fields[name] = file.get_tensor(key)
    return metadata["onp.trigger"], fields | json.loads(metadata["onp.scalars"])


def _tried(kind: type[Trigger], fields: dict[str, Any]) -> Trigger:
    """The trigger with these fields; raises ValueError, or whatever it raises itself, where it cannot be used."""
    types = {
        name: wanted for name, wanted in typing.get_type_hints(kind).items() if typing.get_origin(wanted) is not typing.ClassVar
    }
    if fields.keys() != types.keys():
        raise ValueError(f"The fields are {', '.join(types)}.")
    for name, value in fields.items():
        if not _is_a(value, types[name]) or not all(bool(tensor.isfinite().all()) for tensor in _tensors(value)):
            raise ValueError(f"The field {name} is of another type, or not finite.")
    trigger = kind(**fields)
    trigger.check_amplitude()
    image = torch.rand((1, *trigger.example_shape()), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        triggered = trigger(image)
    low, high = triggered.aminmax()  # nan where any pixel is
    if triggered.shape != image.shape or not -TOLERANCE <= float(low) <= float(high) <= 1 + TOLERANCE:
        raise ValueError("The trigger makes no images.")
    return trigger


def _is_a(value: object, wanted: Any) -> bool:
    """Whether a field's value is of the type that its dataclass says: Tensor, dict[str, Tensor], float, int or bool."""
    if wanted is Tensor:
        return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0
    if typing.get_origin(wanted) is dict:
        return isinstance(value, dict) and all(_is_a(part, Tensor) for part in value.values())
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is wanted


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from value.values()
