"""FP, the pruning of Fine-Pruning: prune the last channels that clean images use least (Liu et al. 2018,
https://arxiv.org/abs/1805.12185). Its other half is fine-tuning: `fp+ft` in `onp.compare`.

Score: the mean value of a channel in front of the classifier. Where a residual sum ends there, the layers it adds lose the
channel together, since none alone can silence it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.interpret import gated_forward, head_input
from onp.model.victim import Victim


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for 1 %, 2 %, ... 99 % of the last channels."""
    fit, _ = fit_and_held_out(clean, config.seed)
    used = usage(victim, fit)
    last = victim.layers[-1]
    tied = [layer for layer in victim.layers if layer.group == last.group]
    shares = tuple(percent / 100 for percent in range(1, 100))
    masks = torch.ones((len(shares), victim.units), dtype=torch.bool)
    for row, share in zip(masks, shares, strict=True):
        least = used.argsort()[: -int(-share * last.units // 1)]
        for layer in tied:
            row[layer.offset + least] = False
    return Curve(shares, masks)


@torch.no_grad()
def usage(victim: Victim, images: ImageSet) -> Tensor:
    """The mean of each of the last layer's channels as the classifier sees it, float32 [K] on the CPU."""
    units, node = victim.layers[-1].units, head_input(victim)
    gates = torch.ones(victim.units, device=victim.device)
    total = torch.zeros(units)
    for part in images.pixels().split(100):
        x = victim.normalisation(part.to(victim.device))
        features = gated_forward(victim, x, gates, outputs=[node])[1][node].flatten(1)
        if features.shape[1] % units:
            raise InputError(f"The classifier reads {features.shape[1]} values, not the {units} channels of the last layer.")
        total += features.reshape(len(part), units, -1).mean(2).sum(0).cpu()
    return total / len(images)
