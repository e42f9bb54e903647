"""Random search, made as strong as it gets without a hint: random small sets of units, then mutations of the best.

Half of the evaluations draw fresh subsets: a size log-uniform up to 15 % of the units, a random share of the layers,
units uniform within them. The other half is a (1+1) evolution: a few random flips of the best, kept if they gain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onp.search.env import PruneEnv

MAX_SHARE = 0.15


def search(env: PruneEnv, score: Tensor | None, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask found, bool [V]; the unpruned network's evaluation is counted; `env` ends in that mask.

    score: not looked at; it is there for the signature the searches share.
    """
    generator = torch.Generator().manual_seed(seed)
    first = env.evaluations - 1
    env.reset()
    misses = 0
    # Small networks have few small masks: a long row of known ones means that there is little left to draw.
    while env.evaluations - first < max_evaluations and misses < 1000:
        fresh_half = env.evaluations - first <= max_evaluations // 2
        mask = _subset(env, generator) if fresh_half else _mutated(env.keep, generator)
        misses = 0 if bool(env.fresh(mask[None])) else misses + 1
        outcome = env.evaluate(mask[None])
        if bool(outcome.acceptable) and bool(outcome.phi > env.outcome.phi):
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
