"""Masks that prune the highest-ranking units."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SHARE = 0.3  # of the units: beyond it no network in our range keeps its accuracy


def top_masks(score: Tensor, count: int) -> Tensor:
    """At most `count` masks that prune the highest-scoring 1, 2, ... units, evenly spread in the logarithm.

    Args:
        score: float32 `[V]`; units with a score of 0 or less are never pruned.
        count: how many masks.

    Returns:
        bool `[B, V]`, True = keep; no rows where no score is above 0.
    """
    most = largest_size(score)
    if most == 0 or count < 1:
        return torch.ones((0, len(score)), dtype=torch.bool)
    sizes = torch.logspace(0, 1, count, base=most).round().long().unique()
    return pruned_first(score.argsort(descending=True), sizes)


def largest_size(score: Tensor) -> int:
    """The most units that a mask of `top_masks` prunes: those with a score above 0, up to `MAX_SHARE` of all."""
    return min(int((score > 0).sum()), max(1, int(MAX_SHARE * len(score))))


def pruned_first(order: Tensor, sizes: Tensor) -> Tensor:
    """Masks bool `[B, V]` that prune the first `sizes[b]` units of `order`, int64 `[V]`."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank >= sizes[:, None]
