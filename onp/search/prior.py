"""What first-order saliency says before anything is learned: the logit that a unit is toggled, and units picked by logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RESTORE_LOGIT = -1.5  # at which a pruned unit starts out to be brought back


def normalised(score: Tensor) -> Tensor:
    """1 for the unit that ranks at 1 % (at least fifth), linear below and above it, within [-1, 1.5].

    Args:
        score: float32 `[V]`, Taylor saliency.
    """
    rank = min(len(score), max(5, len(score) // 100))
    reference = score.topk(rank).values[-1].clamp_min(1e-8)
    return (score / reference).clamp(-1, 1.5)


def usual_logit(units: int) -> float:
    """The logit of a unit of no saliency: about 8 units in all, at most 1 %, are toggled."""
    chance = min(0.01, 8 / units)
    return math.log(chance) - math.log1p(-chance)


def toggling_logits(score: Tensor, keep: Tensor) -> Tensor:
    """The logit, float32 `[V]`, that a unit is pruned, or where it is pruned that it is brought back.

    Args:
        score: float32 `[V]`, Taylor saliency.
        keep: bool `[V]`, the committed mask.
    """
    saliency, usual = normalised(score), usual_logit(len(score))
    return torch.where(keep, usual * (1 - saliency), RESTORE_LOGIT - saliency)


def pick_units(logits: Tensor, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` different units, int64 `[B]`: half of them the likeliest, the rest sampled one after the other, each in
    proportion to its probability.

    Args:
        logits: float32 `[V]`.
        allowed: bool `[V]`, those to choose from.
        count: how many.
        generator: of the samples.
    """
    logits = logits.masked_fill(~allowed, -torch.inf)
    count = min(count, int(allowed.sum()))
    likeliest = logits.topk(count // 2).indices
    # The largest of logits plus Gumbel noise are samples without replacement.
    noise = -torch.log(-torch.log(torch.rand(len(logits), generator=generator)))
    sampled = (logits + noise).index_fill(0, likeliest, -torch.inf).topk(count - len(likeliest)).indices
    return torch.cat((likeliest, sampled))
