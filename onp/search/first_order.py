"""First-order search: masks along two orders of the units, then single toggles that Taylor saliency proposes.

Nothing is learned. On networks of a zoo it ends where a graph network trained by reinforcement does, in less time
(docs/agent.md). First-order saliency of a gate: Molchanov et al. 2017, https://arxiv.org/abs/1611.06440.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onp.errors import InputError
from onp.search.course import Course, FoundMask, Progress
from onp.search.prior import pick_units, toggling_logits
from onp.search.problem import SearchProblem
from onp.search.single_toggles import Patience, toggle_single_units


@dataclass(frozen=True)
class FirstOrderConfig:
    """How the search goes."""

    seed: int = 0
    max_evaluations: int = 100  #: masks scored in all, the unpruned network's included; never exceeded
    warm_start_masks: int = 16  #: of each order of the units
    patience: Patience = Patience()


def search(problem: SearchProblem, config: FirstOrderConfig, progress: Progress | None = None) -> FoundMask:
    """The best acceptable mask met within the budget; the environment ends in it.

    Args:
        problem: environment and features.
        config: how to search.
        progress: called with every step.

    Raises:
        InputError: a budget without an evaluation.

    Example:
        >>> search(build_env(victim, splits, bank, bn, SearchRun()), FirstOrderConfig()).keep  # doctest: +SKIP
    """
    if config.max_evaluations < 1:
        raise InputError("A search needs at least 1 evaluation.")
    course, generator = Course(problem.env, config.max_evaluations, progress), torch.Generator().manual_seed(config.seed)
    course.warm_start(problem.features, config.warm_start_masks)
    measured_at, saliency = torch.ones_like(problem.env.keep), problem.features.taylor

    def pick(keep: Tensor, allowed: Tensor, count: int) -> Tensor:
        nonlocal measured_at, saliency
        if not torch.equal(keep, measured_at):  # first-order effects hold near the mask that they were measured at
            measured_at, saliency = keep, problem.features.at(keep, problem.saliency).taylor
        return pick_units(toggling_logits(saliency, keep), allowed, count, generator)

    toggle_single_units(course, config.patience, pick)
    return course.found()
