"""CMA-ES over one threshold a layer: the learned policy replaced by a few numbers (Hansen 2016, https://arxiv.org/abs/1604.00772).

Within a layer the order is fixed, by the first-order score; the search chooses how many units each layer loses. This is the
usual way of pruning with evolution strategies, and what a policy over single units must beat.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onp.errors import InputError
from onp.search.env import Budget, PruneEnv

MAX_SHARE = 0.3  # of the units of a layer
SIGMA = 1.0
START = -3.0  # logit of the share of `MAX_SHARE` that each layer loses at first: about 1.4 % of its units
MAX_REPEATS = 50  # small networks have few masks of this kind: so many known generations in a row mean that hardly any is left


def search(env: PruneEnv, score: Tensor, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask met; `env` ends in it.

    Args:
        env: where masks are scored.
        score: float32 `[V]`, `NodeFeatures.taylor`.
        max_evaluations: masks scored in all, the unpruned network's included.
        seed: of the random numbers.

    Returns:
        bool `[V]`, True = keep.

    Raises:
        InputError: the package cmaes is missing.
    """
    try:
        from cmaes import CMA
    except ImportError as error:
        raise InputError("This search needs cmaes; install it with: pip install 'onp-defense[peers]'.") from error
    budget = Budget(env, max_evaluations)
    env.reset()
    sizes = [layer.units for layer in env.victim.layers]
    order = [part.argsort(descending=True) for part in score.split(sizes)]
    start = np.full(len(sizes), START)
    optimiser = CMA(mean=start, sigma=SIGMA, seed=seed)
    repeats = 0
    while budget.left() > 0 and repeats < MAX_REPEATS:
        points = [optimiser.ask() for _ in range(optimiser.population_size)]
        masks = torch.stack([_mask(point, order) for point in points])
        new = int(env.new(masks).sum())
        if new > budget.left():
            break
        repeats = 0 if new else repeats + 1
        best = env.best_of(masks)
        if best is not None:
            env.commit(best)
        phi = env.evaluate(masks).phi.tolist()
        optimiser.tell([(point, -value) for point, value in zip(points, phi, strict=True)])
    return env.keep


def _mask(point: np.ndarray, order: list[Tensor]) -> Tensor:
    """bool [V]: of each layer the units that come first in `order`, as many as its coordinate gives."""
    parts = []
    for value, units in zip(point, order, strict=True):
        keep = torch.ones(len(units), dtype=torch.bool)
        keep[units[: round(MAX_SHARE * len(units) / (1 + math.exp(-float(np.clip(value, -30, 30)))))]] = False
        parts.append(keep)
    return torch.cat(parts)
