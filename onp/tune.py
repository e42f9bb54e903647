"""Prune, then tune: what is left of a pruned network trained a little, with the pruned units kept at zero."""

from __future__ import annotations

from onp.data import ImageSet
from onp.mask import Mask
from onp.peers import TUNERS, PeerConfig
from onp.repair import repair
from onp.victim import Victim

#: Those that leave the architecture and the pruned units alone.
TUNES = ("ft", "ft-sam", "nad", "i-bau", "sau")


def tune_pruned(pruned: Victim, mask: Mask, name: str, clean: ImageSet, config: PeerConfig) -> Victim:
    """`pruned` (what `repair` made with `mask`) after the tuning `name` of `TUNES` on `clean`."""
    return repair(TUNERS[name](pruned, clean, config), mask)
