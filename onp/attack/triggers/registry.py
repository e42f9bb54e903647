"""The attacks by name."""

from onp.attack.triggers.adaptive_blend import AdaptiveBlend
from onp.attack.triggers.badnets import BadNets, BadNetsAllToAll
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.blended import Blended
from onp.attack.triggers.bpp import BPP
from onp.attack.triggers.colour_filter import ColourFilter
from onp.attack.triggers.ctrl import CTRL
from onp.attack.triggers.input_aware import InputAware
from onp.attack.triggers.label_consistent import LabelConsistent
from onp.attack.triggers.low_frequency import LowFrequency
from onp.attack.triggers.sig import SIG
from onp.attack.triggers.ssba import SSBA
from onp.attack.triggers.trojannn import TrojanNN
from onp.attack.triggers.wanet import WaNet

_KINDS: tuple[type[Trigger], ...] = (
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
#: The kind of trigger of each attack; `--attack` takes these names, and a trigger's file holds one.
TRIGGERS: dict[str, type[Trigger]] = {kind.name: kind for kind in _KINDS}
