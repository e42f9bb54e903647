"""Attack triggers, image -> image: used to train victims and to measure a repair, never by the defence itself."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from onp.attack.triggers.adaptive_blend import AdaptiveBlend
from onp.attack.triggers.badnets import BadNets, BadNetsAllToAll
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.blended import Blended
from onp.attack.triggers.bpp import BPP
from onp.attack.triggers.colour_filter import ColourFilter
from onp.attack.triggers.crafting import Crafting
from onp.attack.triggers.ctrl import CTRL
from onp.attack.triggers.input_aware import InputAware
from onp.attack.triggers.label_consistent import LabelConsistent
from onp.attack.triggers.low_frequency import LowFrequency
from onp.attack.triggers.sig import SIG
from onp.attack.triggers.ssba import SSBA
from onp.attack.triggers.trojannn import TrojanNN
from onp.attack.triggers.wanet import WaNet
from onp.errors import InputError

KINDS: tuple[type[Trigger], ...] = (
    BadNets,
    BadNetsAllToAll,
    Blended,
    SIG,
    LabelConsistent,
    WaNet,
    InputAware,
    SSBA,
    LowFrequency,
    BPP,
    TrojanNN,
    CTRL,
    AdaptiveBlend,
    ColourFilter,
)
TRIGGERS: dict[str, type[Trigger]] = {kind.name: kind for kind in KINDS}


def load_trigger(path: str | Path) -> Trigger:
    """Read a trigger that `Trigger.save` wrote.

    Raises:
        InputError: the file is missing or is not such a trigger.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no trigger file at {path}.")
    fields: dict[str, Any] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, dot, part = key.partition(".")
                if dot:
                    fields.setdefault(name, {})[part] = file.get_tensor(key)
                else:
                    fields[name] = file.get_tensor(key)
        kind, scalars = metadata["onp.trigger"], json.loads(metadata["onp.scalars"])
        if kind in TRIGGERS:
            return TRIGGERS[kind](**fields, **scalars)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a trigger written by onp.attack; give its trigger.safetensors.") from error
    raise InputError(f"{path} is a trigger of the unknown kind '{kind}'; known are {', '.join(TRIGGERS)}.")


__all__ = [
    "BPP",
    "CTRL",
    "KINDS",
    "SIG",
    "SSBA",
    "TRIGGERS",
    "AdaptiveBlend",
    "BadNets",
    "BadNetsAllToAll",
    "Blended",
    "ColourFilter",
    "Crafting",
    "InputAware",
    "LabelConsistent",
    "LowFrequency",
    "Trigger",
    "TrojanNN",
    "WaNet",
    "load_trigger",
]
