"""Which units of a network were pruned, as its weights tell."""

from __future__ import annotations

import torch

from onp.model.mask import Mask
from onp.model.victim import Victim


def pruned_units(victim: Victim) -> Mask:
    """The mask that `onp.model.prune.prune` must have been given: False for units that the weights switch off.

    A unit is switched off where its filter, its bias and the scale and shift of its norm are all exactly zero. Training does
    not do that: weights that decay come close to zero and stay apart from it, and a scale that starts at zero has a filter.
    Whoever pruned, the running statistics of the norms behind such a unit are those of the network before that.
    """
    state, keep = victim.model.state_dict(), []
    for layer in victim.layers:
        used = [state[key].reshape(layer.units, -1).ne(0).any(1).cpu() for key in layer.keys]
        keep.append(torch.stack(used).any(0))
    return Mask.of(victim, torch.cat(keep))
