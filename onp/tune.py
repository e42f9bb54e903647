"""Prune, then tune: what is left of a pruned network is trained on clean images, with the pruned units kept at zero."""

from __future__ import annotations

from dataclasses import replace

from onp.data import ImageSet
from onp.errors import InputError
from onp.mask import Mask
from onp.peers import TUNERS, PeerConfig
from onp.victim import Victim

#: Those that leave the architecture and the pruned units alone.
TUNES = ("ft", "ft-sam", "nad", "i-bau", "sau")


def check_tuning(name: str | None, victim: Victim) -> None:
    """Raises InputError where `victim` cannot be tuned by the method `name`; None is no tuning."""
    if name is not None and name not in TUNES:
        raise InputError(f"There is no tuning '{name}'; choose one of {', '.join(TUNES)}.")
    if name is not None and victim.checkpoint is not None and victim.checkpoint.kind == "pt2":
        raise InputError("An exported program cannot be trained, so --tune needs the weights as a state dict, with --arch.")


def tune_pruned(pruned: Victim, mask: Mask, name: str, clean: ImageSet, config: PeerConfig) -> Victim:
    """`pruned` (what `repair` made with `mask`) after the tuning `name` of `TUNES` on `clean`."""
    return TUNERS[name](pruned, clean, replace(config, pruned=mask))
