"""Masks whose true effects are worth knowing: along orders of the units, near the best mask, and at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onp.model.layers import Layer
from onp.search.ranking import pruned_first

PREFIXES = 12  #: of each order
LARGEST_SHARE = 0.35  #: of the units that a prefix prunes at most
NEAR = 64  #: masks near one mask
RANDOM = 48  #: masks of random shares of each layer
SHARES = (0.002, 0.3)  #: of a layer that a random mask prunes, log-uniform, where it prunes any


def along(order: Tensor) -> Tensor:
    """Masks bool `[B, V]` that prune the first 1, 2, 4, ... units of an order.

    Args:
        order: float `[V]`, highest first; nan last.
    """
    most = max(1, int(LARGEST_SHARE * len(order)))
    sizes = torch.logspace(0, 1, PREFIXES, base=most).round().long().unique()
    return pruned_first(order.nan_to_num(-torch.inf).argsort(descending=True, stable=True), sizes)


def near(keep: Tensor, generator: torch.Generator, count: int = NEAR) -> Tensor:
    """Masks bool `[count, V]` that keep a random share of what `keep` prunes, and prune a few other units.

    Args:
        keep: bool `[V]`.
        generator: of the draw.
        count: how many masks.
    """
    pruned = int((~keep).sum())
    share = torch.rand(count, 1, generator=generator)
    back = torch.rand(count, len(keep), generator=generator) < share * torch.rand(count, 1, generator=generator)
    # Up to half as many others as the mask prunes, or a few where it prunes hardly any.
    other = torch.rand(count, 1, generator=generator) * max(8, pruned) / 2 / max(1, len(keep) - pruned)
    more = torch.rand(count, len(keep), generator=generator) < other
    return (keep | back) & ~(keep & more)


def at_random(layers: Sequence[Layer], generator: torch.Generator, count: int = RANDOM) -> Tensor:
    """Masks bool `[count, V]` that prune a random share of random layers.

    Args:
        layers: of the network.
        generator: of the draw.
        count: how many masks.
    """
    sizes = torch.tensor([layer.units for layer in layers])
    low, high = torch.tensor(SHARES).log()
    share = torch.exp(low + (high - low) * torch.rand(count, len(layers), generator=generator))
    share = share * (torch.rand(count, len(layers), generator=generator) < torch.rand(count, 1, generator=generator))
    return torch.rand(count, int(sizes.sum()), generator=generator) >= share.repeat_interleave(sizes, 1)


def different(masks: Sequence[Tensor]) -> Tensor:
    """All masks, bool `[M, V]`, each once and in order, but the one that prunes nothing."""
    seen: dict[bytes, Tensor] = {}
    for mask in torch.cat(list(masks)):
        if not mask.all():
            seen.setdefault(mask.numpy().tobytes(), mask)
    return torch.stack(list(seen.values()))
