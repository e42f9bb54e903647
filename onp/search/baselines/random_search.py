"""Random search, as strong as it gets without scores of the units: random small sets of units, then mutations of the best.

Half of the evaluations sample new subsets: a size log-uniform up to 15 % of the units, a random share of the layers,
units uniform within them. The other half is a (1+1) evolution: a few random toggles of the best mask, kept if they gain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onp.search.env import Budget, PruneEnv

MAX_SHARE = 0.15  # of the units in one subset
MAX_REPEATS = 1000  # small networks have few small masks: so many known ones in a row mean that hardly any is left


def search(env: PruneEnv, score: Tensor | None, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask met; `env` ends in it.

    Args:
        env: where masks are scored.
        score: unused; all searches share this signature.
        max_evaluations: masks scored in all, the unpruned network's included.
        seed: of the random numbers.

    Returns:
        bool `[V]`, True = keep.
    """
    generator = torch.Generator().manual_seed(seed)
    budget = Budget(env, max_evaluations)
    env.reset()
    repeats = 0
    while budget.left() > 0 and repeats < MAX_REPEATS:
        mask = _subset(env, generator) if budget.spent() <= max_evaluations // 2 else _mutated(env.keep, generator)
        repeats = 0 if bool(env.new(mask[None])) else repeats + 1
        if env.best_of(mask[None]) is not None:
            env.commit(mask)
    return env.keep


def _subset(env: PruneEnv, generator: torch.Generator) -> Tensor:
    layers = env.victim.layers
    units = env.victim.units
    most = max(1.0, MAX_SHARE * units)
    size = round(math.exp(float(torch.rand((), generator=generator)) * math.log(most)))
    share = torch.rand((), generator=generator)
    chosen = torch.rand(len(layers), generator=generator) <= share
    chosen[torch.randint(len(layers), (), generator=generator)] = True
    allowed = torch.repeat_interleave(chosen, torch.tensor([layer.units for layer in layers]))
    order = (torch.rand(units, generator=generator) * allowed).argsort(descending=True)
    keep = torch.ones(units, dtype=torch.bool)
    keep[order[: min(size, int(allowed.sum()))]] = False
    return keep


def _mutated(keep: Tensor, generator: torch.Generator) -> Tensor:
    """One to four units pruned anew, or brought back with equal chance where some are pruned."""
    keep = keep.clone()
    for _ in range(int(torch.randint(1, 5, (), generator=generator))):
        pruned = (~keep).nonzero()[:, 0]
        back = len(pruned) > 0 and bool(torch.rand((), generator=generator) < 0.5)
        pool = pruned if back else keep.nonzero()[:, 0]
        keep[pool[torch.randint(len(pool), (), generator=generator)]] = back
    return keep
