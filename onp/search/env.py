"""The environment that masks are searched in: what masks achieve, and the mask that is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.engine.evaluator import MaskScorer, Scores
from onp.engine.mask_table import MaskTable, mask_keys
from onp.errors import InputError
from onp.model.victim import Victim
from onp.search.objective import SELECTION, MaskEffects, Objective, expected_acc_loss


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What B masks achieve, float32 `[B]` on the CPU but `acceptable`, bool `[B]`; see `objective.MaskEffects`."""

    phi: Tensor
    asr: Tensor
    expected_acc_loss: Tensor
    acc: Tensor
    acceptable: Tensor


class PruneEnv:
    """Masks of one victim; deterministic, and every search starts from the unpruned network.

    After construction: `keep` bool `[V]` is the committed mask, `outcome` (B = 1) what it achieves, `evaluations` the number of
    masks scored, the unpruned network's included. `onp.search.gym_env` makes a gymnasium environment of it.

    Args:
        victim: whose units the masks prune.
        evaluator: scores masks on clean, triggered and augmented images.
        weights: weight of each trigger family, at least 0, not all 0; they are normalised to sum to 1.
        objective: the potential.
        backdoor_score: float `[V]`, at least 0, summing to at most 1; None for 0.

    Raises:
        InputError: the weights do not fit the evaluator's families.
    """

    def __init__(
        self,
        victim: Victim,
        evaluator: MaskScorer,
        weights: Sequence[float],
        objective: Objective = Objective(),
        backdoor_score: Tensor | None = None,
    ) -> None:
        families = len(evaluator.families)
        if len(weights) != families or min(weights, default=0.0) < 0 or sum(weights) <= 0:
            raise InputError(f"{families} families of triggers need as many weights >= 0, not all 0.")
        self.victim, self.evaluator, self.objective = victim, evaluator, objective
        self.weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self.evaluations = 0
        self._backdoor_score = (torch.zeros(victim.units) if backdoor_score is None else backdoor_score).double()
        self._scored = MaskTable[MaskEffects]()
        unpruned = torch.ones(1, victim.units, dtype=torch.bool)
        self._base = evaluator.score(unpruned)
        self._add(unpruned, self._base)
        self.reset()

    def reset(self, objective: Objective | None = None) -> None:
        """Commit the unpruned network, for another objective if one is given; masks scored before stay known."""
        self.objective = objective or self.objective
        self.commit(torch.ones(self.victim.units, dtype=torch.bool))

    def evaluate(self, masks: Tensor) -> Outcomes:
        """What `masks`, bool `[B, V]`, True = keep, achieve; a mask scored before costs no evaluation."""
        keys, rows = self._scored.missing(masks)
        if rows:
            self._add(masks[rows], self.evaluator.score(masks[rows]))
        effects = MaskEffects.joined([self._scored[key] for key in keys])
        return Outcomes(
            phi=self.objective.potential(effects).float(),
            asr=effects.asr.float(),
            expected_acc_loss=effects.expected_acc_loss.float(),
            acc=(self._base.acc[0] - effects.counted_acc_loss).float(),
            acceptable=self.objective.acceptable(effects),
        )

    def new(self, masks: Tensor) -> Tensor:
        """bool `[B]`: the masks for which `evaluate` would spend an evaluation, each new mask once."""
        _, rows = self._scored.missing(masks)
        return torch.zeros(len(masks), dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.int64), True)

    def best_of(self, masks: Tensor) -> Tensor | None:
        """The acceptable mask, bool `[V]`, of the largest Phi, or None where none beats the committed mask."""
        if not len(masks):
            return None
        outcomes = self.evaluate(masks)
        phi = torch.where(outcomes.acceptable, outcomes.phi, -torch.inf)
        return masks[phi.argmax()] if bool(phi.max() > self.outcome.phi) else None

    def commit(self, keep: Tensor) -> None:
        """Make `keep`, bool `[V]`, the committed mask; the evaluator then reuses all that lies before the next change."""
        self.outcome = self.evaluate(keep[None])
        self.keep = keep.clone()
        self.evaluator.commit(keep)

    def summary(self, progress: float) -> Tensor:
        """The state in four numbers of [0, 1], float32: ACC, surrogate ASR, share pruned, `progress`."""
        pruned = 1 - float(self.keep.float().mean())
        return torch.tensor([float(self.outcome.acc), float(self.outcome.asr), pruned, progress]).clamp(0, 1)

    def required_budget(self, asr: float) -> float | None:
        """The smallest ACC budget, a share, at which a mask scored so far with at most this surrogate ASR would have been
        acceptable; None without such a mask."""
        losses = (float(one.expected_acc_loss) for one in self._scored.values() if float(one.asr) <= asr)
        return min((SELECTION * loss for loss in losses), default=None)

    def _add(self, masks: Tensor, scores: Scores) -> None:
        effects = self._effects(masks, scores)
        self._scored.update((key, effects.at(row)) for row, key in enumerate(mask_keys(masks)))
        self.evaluations += len(masks)

    def _effects(self, masks: Tensor, scores: Scores) -> MaskEffects:
        base = self._base
        counted = base.acc[0] - scores.acc
        return MaskEffects(
            asr=_mean_of_halves(scores.asr, scores.asr_soft) @ self.weights,
            counted_acc_loss=counted,
            # In bfloat16 the unpruned network's own divergence is not 0.
            expected_acc_loss=expected_acc_loss(counted, scores.divergence - base.divergence[0]),
            target_loss=_agreement(base)[0] - _agreement(scores),
            pruned=1 - masks.double().mean(1),
            backdoor_left=masks.double() @ self._backdoor_score,
        )


class Budget:
    """How many of `evaluations` masks may still be scored in `env`; the unpruned network's evaluation counts as one."""

    def __init__(self, env: PruneEnv, evaluations: int) -> None:
        self._env, self._evaluations, self._first = env, evaluations, env.evaluations - 1

    def spent(self) -> int:
        """Masks scored so far."""
        return self._env.evaluations - self._first

    def left(self) -> int:
        """Masks that may still be scored."""
        return self._evaluations - self.spent()

    def affordable(self, masks: Tensor) -> Tensor:
        """Of `masks` those that were scored before, and as many others as the budget allows."""
        new = self._env.new(masks)
        return masks[~new | (new.cumsum(0) <= self.left())]


def layer_blocks(victim: Victim, count: int) -> tuple[Tensor, ...]:
    """At most `count` runs of consecutive layers of about equal number, bool `[V]` each.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"The network must be cut into at least one block of layers, not {count}.")
    count = min(count, len(victim.layers))
    sizes = torch.tensor([layer.units for layer in victim.layers])
    block_of = torch.repeat_interleave(torch.arange(len(sizes)) * count // len(sizes), sizes)
    return tuple(block_of == index for index in range(count))


def _mean_of_halves(share: Tensor, probability: Tensor) -> Tensor:
    """The mean of a share of images and of a mean probability."""
    return (share + probability) / 2


def _agreement(scores: Scores) -> Tensor:
    """Share of the augmented images that are still right, float64 `[B]`: each batch counts alike."""
    batches = scores.agreement.shape[1]
    weights = torch.full((batches,), 1 / max(1, batches), dtype=torch.float64)
    return _mean_of_halves(scores.agreement, scores.agreement_soft) @ weights
