"""Greedy first-order pruning: prune the units with the highest Taylor scores, as many as serves best.

First-order saliency of a gate is Molchanov et al. 2017 (https://arxiv.org/abs/1611.06440); here it is the expected loss
of surrogate ASR minus the weighted loss of accuracy. The strong version: prefix lengths first coarse, then ever finer
around the best; then single flips of ever more units around the cut, measured, until the evaluations are spent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.search.env import PruneEnv
from onp.search.ranking import MAX_SHARE, prefix_masks, pruned_first


def search(env: PruneEnv, score: Tensor, max_evaluations: int, seed: int = 0) -> Tensor:
    """The best acceptable mask found, bool [V]; the unpruned network's evaluation is counted; `env` ends in that mask.

    score: float32 [V], `NodeFeatures.taylor`. Deterministic: `seed` is there for the signature the searches share.
    """
    first = env.evaluations - 1
    env.reset()

    def left() -> int:
        return max_evaluations - (env.evaluations - first)

    def choose(masks: Tensor) -> bool:
        fresh = env.fresh(masks)
        masks = masks[~fresh | (fresh.cumsum(0) <= left())]
        if not len(masks):
            return False
        outcomes = env.evaluate(masks)
        phi = torch.where(outcomes.acceptable, outcomes.phi, -torch.inf)
        better = bool(phi.max() > env.outcome.phi)
        if better:
            env.commit(masks[phi.argmax()])
        return better

    order = score.argsort(descending=True)
    most = min(int((score > 0).sum()), max(1, int(MAX_SHARE * len(score))))
    choose(prefix_masks(score, min(32, max_evaluations // 4)))
    reach = most
    while reach > 1 and left() > 0:
        reach = reach // 2
        size = int((~env.keep).sum())
        sizes = torch.linspace(size - reach, size + reach, 9).round().long().clamp(1, max(1, most)).unique()
        choose(pruned_first(order, sizes))
    near = 2 * int((~env.keep).sum()) + 16
    while left() > 0 and near < 2 * len(score):
        flips = torch.nn.functional.one_hot(order[:near], len(score)).bool()
        near = near if choose(env.keep ^ flips) else 2 * near
    return env.keep
