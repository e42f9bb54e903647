"""BNP: prune channels whose statistics on clean images differ from the running statistics of their norm (Zheng et al. 2022,
"Pre-activation Distributions Expose Backdoor Neurons", https://openreview.net/forum?id=QFQoxCFYEkA).

The norm's running statistics come from the poisoned training set. Score: the Kullback-Leibler divergence of the clean normal
distribution from that of the running statistics; units more than u standard deviations above the mean of their layer are
pruned. Layers without a norm of their own are left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.compare.defences.clp import EPSILON, THRESHOLDS
from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, above, layer_z
from onp.data.images import ImageSet
from onp.model.interpret import gated_forward
from onp.model.victim import Victim


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for u from 10 down to 0.5, 3 as published."""
    fit, _ = fit_and_held_out(clean, config.seed)
    return above(layer_z(victim, divergence(victim, fit)), THRESHOLDS)


@torch.no_grad()
def divergence(victim: Victim, images: ImageSet) -> Tensor:
    """Per unit KL(clean || running statistics) of the norm's input, float32 [U] on the CPU; 0 without a norm."""
    state = victim.model.state_dict()
    layers = [layer for layer in victim.layers if layer.norm_stats]
    sums = {layer.name: torch.zeros(3, layer.units, dtype=torch.float64) for layer in layers}
    gates = torch.ones(victim.units, device=victim.device)
    for part in images.pixels().split(100):
        x = victim.normalisation(part.to(victim.device))
        outputs = gated_forward(victim, x, gates, outputs=[layer.node for layer in layers])[1] if layers else {}
        for layer in layers:
            values = outputs[layer.node].movedim(1, 0).flatten(1).double().cpu()
            sums[layer.name] += torch.stack(
                (torch.full((layer.units,), values.shape[1]), values.sum(1), values.square().sum(1))
            )
    parts = []
    for layer in victim.layers:
        if not layer.norm_stats:
            parts.append(torch.zeros(layer.units))
            continue
        count, total, squares = sums[layer.name]
        mean, old_mean = total / count, state[layer.norm_stats[0]].double().cpu()
        variance = (squares / count - mean.square()).clamp_min(0) + EPSILON
        old_variance = state[layer.norm_stats[1]].double().cpu() + EPSILON
        kl = (old_variance / variance).log() / 2 + (variance + (mean - old_mean).square()) / (2 * old_variance) - 0.5
        parts.append(kl.float())
    return torch.cat(parts)
