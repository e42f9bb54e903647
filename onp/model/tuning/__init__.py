"""Prune, then tune: what is left of a pruned network is trained on clean images, with the pruned units kept at zero.

Entry point: `tune_pruned`, one of five published methods by name. May import `onp.data` and the rest of `onp.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.tuning import ft, ft_sam, ibau, nad, sau
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

#: Methods that leave the architecture and the pruned units alone.
TUNERS: dict[str, Callable[[Victim, ImageSet, TuneConfig], Victim]] = {
    "ft": ft.tune,
    "ft-sam": ft_sam.tune,
    "nad": nad.tune,
    "i-bau": ibau.tune,
    "sau": sau.tune,
}


def check_tuning(name: str | None, victim: Victim) -> None:
    """Raise InputError where `victim` cannot be tuned by the method `name`; None is no tuning."""
    if name is not None and name not in TUNERS:
        raise InputError(f"There is no tuning '{name}'; choose one of {', '.join(TUNERS)}.")
    if name is not None and victim.checkpoint is not None and victim.checkpoint.kind == "pt2":
        raise InputError("An exported program cannot be trained, so --tune needs the weights as a state dict, with --arch.")


def tune_pruned(pruned: Victim, mask: Mask, name: str, clean: ImageSet, config: TuneConfig) -> Victim:
    """Train a pruned network on clean images, with its pruned units kept at zero.

    Args:
        pruned: what `onp.model.prune.prune` made with `mask`.
        mask: of the pruned units.
        name: of the method in `TUNERS`.
        clean: the images.
        config: settings, whose mask is replaced by this one.
    """
    return TUNERS[name](pruned, clean, replace(config, pruned=mask))
