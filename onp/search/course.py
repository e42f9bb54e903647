"""The course of one search: what it has spent, what it found, and each of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from onp.search.env import Budget, Outcomes, PruneEnv
from onp.search.features import NodeFeatures
from onp.search.ranking import top_masks


class Diagnostics(NamedTuple):
    """Of one improvement of a policy; 0 where none learns."""

    entropy: float = 0.0
    approx_kl: float = 0.0  #: http://joschu.net/blog/kl-approx.html
    clip_fraction: float = 0.0


@dataclass(frozen=True)
class Update:
    """One step of a search: what was tried from a state and what came of it."""

    stage: str  #: "warm start", "pass 1", ..., "single toggles"
    block: int  #: -1 for the whole network
    evaluations: int  #: so far
    phi: float  #: of the committed mask, afterwards
    asr: float
    expected_acc_loss: float
    pruned: int
    entropy: float
    approx_kl: float
    clip_fraction: float


Progress = Callable[[Update], None]
"""Called with every step."""


@dataclass(frozen=True, eq=False)
class FoundMask:
    """keep: bool [V], the best acceptable mask, all True when nothing was found; `outcome` its scores (B = 1)."""

    keep: Tensor
    outcome: Outcomes
    history: tuple[Update, ...]
    evaluations: int


class Course:
    """One search in an environment, which it resets.

    Args:
        env: ends in the best mask found.
        evaluations: masks scored in all, the unpruned network's included.
        progress: called with every step.
    """

    def __init__(self, env: PruneEnv, evaluations: int, progress: Progress | None = None) -> None:
        env.reset()
        self.env, self.evaluations, self.history = env, evaluations, list[Update]()
        self._asr_before = float(env.outcome.asr)
        self.budget, self._progress = Budget(env, evaluations), progress

    @property
    def share_spent(self) -> float:
        """Of the evaluations, 0 to 1."""
        return self.budget.spent() / self.evaluations

    @property
    def asr_removed(self) -> float:
        """Share of the surrogate ASR of the unpruned network that the committed mask takes away."""
        return 1 - float(self.env.outcome.asr) / max(self._asr_before, 1e-9)

    def commit_best(self, masks: Tensor, stage: str, block: int = -1, diagnostics: Diagnostics = Diagnostics()) -> None:
        """Commit the best acceptable mask that the budget allows if it beats the current one, and record the step.

        Args:
            masks: bool `[B, V]`, True = keep.
            stage: name of the step.
            block: of layers; -1 for the whole network.
            diagnostics: of the policy, where one learned.
        """
        best = self.env.best_of(self.budget.affordable(masks))
        if best is not None:
            self.env.commit(best)
        state = self.env.outcome
        reached = (float(state.phi), float(state.asr), float(state.expected_acc_loss), int((~self.env.keep).sum()))
        self.history.append(Update(stage, block, self.budget.spent(), *reached, *diagnostics))
        if self._progress:
            self._progress(self.history[-1])

    def warm_start(self, features: NodeFeatures, masks: int) -> None:
        """Score masks that prune the first 1, 2, ... units of two orders: score-to-cost ratio and Taylor saliency.

        Args:
            features: of the unpruned network.
            masks: of each order, at most.
        """
        ordered = torch.cat([top_masks(order, masks) for order in (features.score_to_cost, features.taylor)])
        self.commit_best(ordered[: self.budget.left()], "warm start")

    def found(self) -> FoundMask:
        """The result so far."""
        return FoundMask(self.env.keep, self.env.outcome, tuple(self.history), self.budget.spent())
