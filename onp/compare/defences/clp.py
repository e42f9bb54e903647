"""CLP: prune channels with an outlying Lipschitz bound (Zheng et al. 2022, https://arxiv.org/abs/2208.03111). No data needed.

A unit's bound is the largest singular value of its kernel as a matrix [C, R * S] times the scale its norm applies; units more
than u standard deviations above the mean of their layer are pruned. The norm is the one that reads this layer in the captured
graph: in pre-activation networks it is not the next module. There, and in layers without a norm, the kernel alone counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.pruning import Curve, above, layer_z
from onp.data.images import ImageSet
from onp.model.victim import Victim

EPSILON = 1e-5  # of a batch norm; a channel whose variance is 0 has a finite bound
THRESHOLDS = tuple(u / 2 for u in range(20, 0, -1))  # u, 3 as published


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for u from 10 down to 0.5."""
    return above(layer_z(victim, bounds(victim)), THRESHOLDS)


@torch.no_grad()
def bounds(victim: Victim) -> Tensor:
    """The Lipschitz bound of every unit, float32 [U] on the CPU."""
    state = victim.model.state_dict()
    parts = []
    for layer in victim.layers:
        kernel = state[layer.weight].float()
        bound = torch.linalg.svdvals(kernel.reshape(layer.units, kernel.shape[1], -1))[:, 0]
        if layer.norm and layer.norm_stats:
            scale, variance = state[layer.norm[0]], state[layer.norm_stats[1]]
            bound = bound * scale.abs() / (variance + EPSILON).sqrt()
        parts.append(bound.cpu())
    return torch.cat(parts)
