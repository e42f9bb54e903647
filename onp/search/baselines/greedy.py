"""Greedy first-order pruning: prune the units with the highest Taylor saliency, as many as serves best.

First-order saliency of a gate is Molchanov et al. 2017 (https://arxiv.org/abs/1611.06440); here it is the expected loss
of surrogate ASR minus the weighted loss of ACC. The strong version: the number of units is searched first coarsely, then ever
finer around the best; then ever more single units around the cut are toggled, each measured, until the evaluations are spent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.search.env import Budget, PruneEnv
from onp.search.ranking import largest_size, pruned_first, top_masks


def search(env: PruneEnv, score: Tensor, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask met; `env` ends in it.

    Args:
        env: where masks are scored.
        score: float32 `[V]`, `NodeFeatures.taylor`.
        max_evaluations: masks scored in all, the unpruned network's included.
        seed: unused, the search is deterministic; all searches share this signature.

    Returns:
        bool `[V]`, True = keep.
    """
    budget = Budget(env, max_evaluations)
    env.reset()

    def improve(masks: Tensor) -> bool:
        best = env.best_of(budget.affordable(masks))
        if best is not None:
            env.commit(best)
        return best is not None

    order = score.argsort(descending=True)
    most = largest_size(score)
    improve(top_masks(score, min(32, max_evaluations // 4)))
    reach = most
    while reach > 1 and budget.left() > 0:
        reach = reach // 2
        size = int((~env.keep).sum())
        sizes = torch.linspace(size - reach, size + reach, 9).round().long().clamp(1, max(1, most)).unique()
        improve(pruned_first(order, sizes))
    near = 2 * int((~env.keep).sum()) + 16
    while budget.left() > 0 and near < 2 * len(score):
        toggles = torch.nn.functional.one_hot(order[:near], len(score)).bool()
        near = near if improve(env.keep ^ toggles) else 2 * near
    return env.keep
