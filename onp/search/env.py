"""Pruning as a gymnasium environment: a step decides the units of one block of layers, the reward is what it gained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from onp.engine.evaluator import Evaluator, Scores
from onp.errors import InputError
from onp.model.victim import Victim

# The evaluator's families of changed clean images that the unpruned network gets right, aimed at their own class.
VIEWS = ("views", "views of the target class")
# Accuracy that unseen images lost for each nat of divergence: 0.24 to 0.33, about 100 masks each of three repairs (rank
# correlation 0.84 to 0.97; of the accuracy lost on the clean images themselves 0.5 to 0.9).
LOST_PER_NAT = 0.3
COUNTED = 0.5  # share of the accuracy budget that images may be counted to lose: a few hundred do not show all


@dataclass(frozen=True)
class Objective:
    """The potential Phi that rewards are differences of.

    Phi = -S - accuracy * drop - beyond * max(0, drop - budget)
    - penalty * max(0, lost - max_acc_drop) / max(max_acc_drop, 0.005)
    - changed * disagreement - size * share of units pruned - remembered * share of the carriers left,
    where S is the ASR on the surrogate triggers, weighted by their evidence; lost the share of clean images, net, that are
    wrong instead of right; drop the accuracy that unseen images must be expected to lose, `LOST_PER_NAT` times the divergence
    from the unpruned network: a few hundred images show how far the outputs moved much more exactly than how many flipped;
    disagreement the share of changed copies of the clean images that were right and no longer are (0 without such copies): no
    gain here makes up for a loss there. Images of the target class weigh as much in it as all others together: pruning what
    leads to a class damages that class first.
    The carriers are the units that bore the attack of the training images, as far as the norms remember it: without them, the
    smallest mask that stops the surrogate triggers wins, and the attacker's trigger can still use the rest.
    S and disagreement are the mean of the share of images and of the mean probability: one is what counts, the other is smooth.
    """

    max_acc_drop: float = 0.01  #: share of the clean images; masks beyond it are never chosen
    accuracy: float = 2.0  #: worth of accuracy against ASR as long as no more than `budget` is expected to be lost
    beyond: float = 14.0  #: what more it is worth beyond that
    budget: float = 0.01  #: accuracy that the user would give, as a share; masks whose `Outcomes.cost` is beyond it neither
    changed: float = 1.0
    penalty: float = 2.0
    size: float = 1.0
    remembered: float = 0.5


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What B masks achieve; all float32 [B] on the CPU but `acceptable`, bool [B]: loss of accuracy within the allowed."""

    phi: Tensor
    asr: Tensor  #: S of `Objective`
    drop: Tensor  #: accuracy expected to be lost, see `Objective`
    cost: Tensor  #: the same by flips, labels' probability and divergence together; at most the budget where `acceptable`
    acc: Tensor
    acceptable: Tensor

    def __len__(self) -> int:
        return len(self.phi)

    def at(self, index: int) -> Outcomes:
        """The outcome of one mask, as B = 1."""
        part = slice(index, index + 1)
        return Outcomes(*(getattr(self, name)[part] for name in Outcomes.__dataclass_fields__))


class PruneEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Prune a victim block by block; deterministic, every episode starts from the unpruned network.

    One pass visits the blocks (runs of consecutive layers) first to last, so that the evaluator reuses what lies
    before; an episode is `passes` passes, and a later pass may bring units back.
    Action: MultiBinary [largest block], 1 = prune that unit of the current block; entries beyond the block are ignored.
    Observation: `keep` MultiBinary [V]; `summary` Box [4], all within [0, 1]: accuracy, surrogate ASR, share
    pruned, progress of the episode; `block` Discrete, the block to decide next.
    Reward: the difference of `Objective`'s Phi, so that an episode's return is Phi at its end minus Phi at its start.

    `evaluate` and `commit` are the same transitions for many masks from one state, without the gymnasium bookkeeping.
    `carriers`: float [V], at least 0, summing to at most 1: how much each unit bore of the attack that the norms remember,
    times how far that memory is believed; None for nothing remembered.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium declares it as an instance variable)

    def __init__(
        self,
        victim: Victim,
        evaluator: Evaluator,
        weights: tuple[float, ...],
        objective: Objective | None = None,
        *,
        carriers: Tensor | None = None,
        blocks: int = 8,
        passes: int = 1,
    ) -> None:
        copies = torch.tensor([family in VIEWS for family in evaluator.families])
        triggers = int((~copies).sum())
        if len(weights) != triggers or min(weights, default=0.0) < 0 or sum(weights) <= 0:
            raise InputError(f"{triggers} families of triggers need as many weights >= 0, not all 0.")
        self.victim, self.evaluator, self.objective = victim, evaluator, objective or Objective()
        self._carriers = torch.zeros(victim.units, dtype=torch.float64) if carriers is None else carriers.double()
        self.passes = passes
        self.weights = torch.zeros(len(evaluator.families), dtype=torch.float64)
        self.weights[~copies] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self._views = copies.double() / max(1, int(copies.sum()))
        self.blocks = _cut(victim, blocks)
        self.evaluations = 0
        self._known: dict[bytes, Outcomes] = {}
        start = torch.ones(1, victim.units, dtype=torch.bool)
        base = evaluator.score(start)
        self._acc, self._acc_soft, self._divergence = base.acc[0], base.acc_soft[0], base.divergence[0]
        self._agreed = ((base.asr + base.asr_soft) / 2 @ self._views)[0]
        self._remember(start, base)
        self.reset()
        self.action_space = spaces.MultiBinary(max(int(block.sum()) for block in self.blocks))
        self.observation_space = spaces.Dict(
            {
                "keep": spaces.MultiBinary(victim.units),
                "summary": spaces.Box(0.0, 1.0, (4,), np.float32),
                "block": spaces.Discrete(len(self.blocks)),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.commit(torch.ones(self.victim.units, dtype=torch.bool))
        return self._observation(), {"phi": float(self.outcome.phi)}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        block = self.blocks[self.steps % len(self.blocks)]
        keep = self.keep.clone()
        keep[block] = torch.from_numpy(np.asarray(action)[: int(block.sum())] == 0)
        before = float(self.outcome.phi)
        self.commit(keep)
        self.steps += 1
        info = {"phi": float(self.outcome.phi), "acceptable": bool(self.outcome.acceptable)}
        return self._observation(), info["phi"] - before, self.steps >= self.passes * len(self.blocks), False, info

    def evaluate(self, masks: Tensor) -> Outcomes:
        """Score `masks`, bool [B, V], True = keep; a mask seen before costs no evaluation."""
        keys = _keys(masks)
        fresh = {key: row for row, key in enumerate(keys) if key not in self._known}
        if fresh:
            rows = masks[list(fresh.values())]
            self._remember(rows, self.evaluator.score(rows))
        found = [self._known[key] for key in keys]
        columns = (torch.cat([getattr(one, name) for one in found]) for name in Outcomes.__dataclass_fields__)
        return Outcomes(*columns)

    def fresh(self, masks: Tensor) -> Tensor:
        """bool [B]: the masks that `evaluate` would pay for, each new mask once."""
        seen, fresh = set(self._known), []
        for key in _keys(masks):
            fresh.append(key not in seen)
            seen.add(key)
        return torch.tensor(fresh, dtype=torch.bool)

    def price(self, asr: float) -> float | None:
        """The smallest accuracy budget, as a share, at which one of the masks scored so far with S of at most `asr` would have
        been acceptable; None without such a mask."""
        acc = float(self._acc)
        stopped = [one for one in self._known.values() if float(one.asr) <= asr]
        return min((max((acc - float(one.acc)) / COUNTED, float(one.cost)) for one in stopped), default=None)

    def commit(self, keep: Tensor) -> None:
        """Make `keep`, bool [V], the state; the evaluator then reuses all that lies before the next change."""
        self.outcome = self.evaluate(keep[None])
        self.keep = keep.clone()
        self.evaluator.commit(keep)

    def summary(self, progress: float) -> Tensor:
        """The state in four numbers of [0, 1], float32: accuracy, surrogate ASR, share pruned, `progress`."""
        pruned = 1 - float(self.keep.float().mean())
        return torch.tensor([float(self.outcome.acc), float(self.outcome.asr), pruned, progress]).clamp(0, 1)

    def _observation(self) -> dict[str, Any]:
        progress = self.steps / (self.passes * len(self.blocks))
        return {
            "keep": self.keep.numpy().astype(np.int8),
            "summary": self.summary(progress).numpy(),
            "block": np.int64(self.steps % len(self.blocks)),
        }

    def _remember(self, masks: Tensor, scores: Scores) -> None:
        o = self.objective
        asr = ((scores.asr + scores.asr_soft) / 2) @ self.weights
        lost = self._acc - scores.acc
        drop = LOST_PER_NAT * (scores.divergence - self._divergence).clamp_min(0)  # not 0 from the start in bfloat16
        pruned = 1 - masks.double().mean(1)
        excess = (lost - o.max_acc_drop).clamp_min(0) / max(o.max_acc_drop, 0.005)
        disagreement = self._agreed - (scores.asr + scores.asr_soft) / 2 @ self._views
        phi = (
            -asr
            - o.accuracy * drop
            - o.beyond * (drop - o.budget).clamp_min(0)
            - o.changed * disagreement.clamp_min(0)
            - o.penalty * excess
            - o.size * pruned
            - o.remembered * (masks.double() @ self._carriers)
        )
        # Labels decide; but those of the best of hundreds of masks were lucky, and what the divergence says was not chosen for.
        # On images kept back, 11 repairs lost 2.1 points where the mean of both said about 1 or more, 0.4 where it said less.
        # What the labels' probability says was not chosen for either, and tells where outputs moved without harm.
        cost = (lost + (drop + self._acc_soft - scores.acc_soft) / 2) / 2
        acceptable = (lost <= o.max_acc_drop + 1e-9) & (cost <= o.budget + 1e-9)
        columns = (phi.float(), asr.float(), drop.float(), cost.float(), scores.acc.float(), acceptable)
        outcomes = Outcomes(*columns)
        self._known.update((key, outcomes.at(row)) for row, key in enumerate(_keys(masks)))
        self.evaluations += len(masks)


def _keys(masks: Tensor) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(masks.numpy(), axis=1)]


def _cut(victim: Victim, blocks: int) -> tuple[Tensor, ...]:
    """At most `blocks` runs of consecutive layers of about equal number, as bool [V] each."""
    if blocks < 1:
        raise InputError(f"The network must be cut into at least one block of layers, not {blocks}.")
    count = min(blocks, len(victim.layers))
    sizes = torch.tensor([layer.units for layer in victim.layers])
    block_of = torch.repeat_interleave(torch.arange(len(sizes)) * count // len(sizes), sizes)
    return tuple(block_of == index for index in range(count))
