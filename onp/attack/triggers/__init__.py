"""Attack triggers, image -> image: used to train victims and to measure a repair, never by the defence itself.

Entry points: `TRIGGERS` (the kinds by the name of their attack), `Trigger` (what all share) and `load_trigger` (a file that
`Trigger.save` wrote). One attack a file, with its paper.
"""

from onp.attack.triggers.adaptive_blend import AdaptiveBlend
from onp.attack.triggers.badnets import BadNets, BadNetsAllToAll
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.blended import Blended
from onp.attack.triggers.bpp import BPP
from onp.attack.triggers.colour_filter import ColourFilter
from onp.attack.triggers.crafting import Crafting, CraftingBudget
from onp.attack.triggers.ctrl import CTRL
from onp.attack.triggers.input_aware import InputAware
from onp.attack.triggers.label_consistent import LabelConsistent
from onp.attack.triggers.load import load_trigger
from onp.attack.triggers.low_frequency import LowFrequency
from onp.attack.triggers.registry import TRIGGERS
from onp.attack.triggers.sig import SIG
from onp.attack.triggers.ssba import SSBA
from onp.attack.triggers.trojannn import TrojanNN
from onp.attack.triggers.wanet import WaNet

__all__ = [
    "BPP",
    "CTRL",
    "SIG",
    "SSBA",
    "TRIGGERS",
    "AdaptiveBlend",
    "BadNets",
    "BadNetsAllToAll",
    "Blended",
    "ColourFilter",
    "Crafting",
    "CraftingBudget",
    "InputAware",
    "LabelConsistent",
    "LowFrequency",
    "Trigger",
    "TrojanNN",
    "WaNet",
    "load_trigger",
]
