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
from onp.search.env import PruneEnv

MAX_SHARE = 0.3  # of a layer, as in `onp.search.baselines.greedy`
SIGMA = 1.0
START = -3.0  # logit of the share of `MAX_SHARE` that each layer loses at first: about 1.4 % of its units


def search(env: PruneEnv, score: Tensor, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask found, bool [V]; the unpruned network's evaluation is counted; `env` ends in that mask.

    score: float32 [V], `NodeFeatures.taylor`. Raises InputError where the package cmaes is missing.
    """
    try:
        from cmaes import CMA
    except ImportError as error:
        raise InputError("This search needs cmaes; install it with: pip install 'onp-defense[peers]'.") from error
    first = env.evaluations - 1
    env.reset()
    sizes = [layer.units for layer in env.victim.layers]
    order = [part.argsort(descending=True) for part in score.split(sizes)]
    start = np.full(len(sizes), START)
    optimiser = CMA(mean=start, sigma=SIGMA, seed=seed)
    stale = 0
    # Small networks have few masks of this kind: many rows of known ones mean that there is little left to try.
    while env.evaluations - first < max_evaluations and stale < 50:
        points = [optimiser.ask() for _ in range(optimiser.population_size)]
        masks = torch.stack([_mask(point, order) for point in points])
        left = max_evaluations - (env.evaluations - first)
        fresh = env.fresh(masks)
        if int(fresh.sum()) > left:
            break
        stale = 0 if bool(fresh.any()) else stale + 1
        outcomes = env.evaluate(masks)
        phi = torch.where(outcomes.acceptable, outcomes.phi, -torch.inf)
        if bool(phi.max() > env.outcome.phi):
            env.commit(masks[phi.argmax()])
        optimiser.tell([(point, -float(value)) for point, value in zip(points, outcomes.phi, strict=True)])
    return env.keep


def _mask(point: np.ndarray, order: list[Tensor]) -> Tensor:
    """bool [V]: of each layer the units that come first in `order`, as many as its coordinate says."""
    parts = []
    for value, units in zip(point, order, strict=True):
        keep = torch.ones(len(units), dtype=torch.bool)
        keep[units[: round(MAX_SHARE * len(units) / (1 + math.exp(-float(np.clip(value, -30, 30)))))]] = False
        parts.append(keep)
    return torch.cat(parts)
