"""Attack triggers, image -> image: used to train victims and to measure a repair, never by the defence itself."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from onp.errors import InputError
from onp.triggers.badnets import BadNets
from onp.triggers.base import Trigger
from onp.triggers.blended import Blended
from onp.triggers.wanet import WaNet

TRIGGERS: dict[str, type[Trigger]] = {kind.name: kind for kind in (BadNets, Blended, WaNet)}


def load_trigger(path: str | Path) -> Trigger:
    """Read a trigger that `Trigger.save` wrote.

    Raises:
        InputError: the file is missing or is not such a trigger.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no trigger file at {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        kind = TRIGGERS[metadata["onp.trigger"]]
        return kind(**tensors, **json.loads(metadata["onp.scalars"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a trigger written by onp.attack; give its trigger.safetensors.") from error


__all__ = ["TRIGGERS", "BadNets", "Blended", "Trigger", "WaNet", "load_trigger"]
