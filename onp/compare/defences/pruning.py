"""The threshold of every pruning defence, chosen by one rule: the largest pruning that held-out clean images allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.data.images import ImageSet
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch
from onp.model.mask import Mask
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Curve:
    """What a method would prune at each of its thresholds, bool [T, U], True = keep, from the gentlest to the harshest."""

    thresholds: tuple[float, ...]
    masks: Tensor


@dataclass(frozen=True, eq=False)
class Pruning:
    """What a defence prunes, and how its threshold was chosen."""

    mask: Mask
    evaluations: int  #: masks measured
    curve: Curve | None = None  #: None for a search, which has no threshold
    chosen: int | None = None  #: index on the curve; None where even the gentlest mask costs too much
    acc: tuple[float, ...] = ()  #: on the held-out images, along the curve


@dataclass(frozen=True)
class Pruner:
    """A pruning defence: a score with a threshold."""

    curve: Callable[[Victim, ImageSet, DefenceConfig], Curve]

    def run(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning:
        """Fit on 60 % of `clean`, choose the threshold on the rest."""
        _, held_out = fit_and_held_out(clean, config.seed)
        return choose_threshold(victim, held_out, self.curve(victim, clean, config), config.max_acc_drop)


def choose_threshold(victim: Victim, held_out: ImageSet, curve: Curve, max_acc_drop: float) -> Pruning:
    """The mask of `curve` that prunes most while the accuracy on `held_out` falls by at most `max_acc_drop`.

    All thresholds are scored as one batch of masks. Of masks that prune equally many units the gentlest counts, and the
    unpruned network stands where every mask costs too much. No trigger is involved.
    """
    pixels = held_out.pixels().to(victim.device)
    evaluator = Evaluator(victim, Batch(victim.normalisation(pixels), held_out.labels.to(victim.device)), [])
    untouched = torch.ones((1, victim.units), dtype=torch.bool)
    acc = evaluator.score(torch.cat((untouched, curve.masks))).acc
    chosen = largest_within(curve, acc[0] - acc[1:], max_acc_drop)
    mask = Mask.of(victim, None if chosen is None else curve.masks[chosen])
    return Pruning(mask, evaluator.evaluations, curve, chosen, tuple(acc[1:].tolist()))


def largest_within(curve: Curve, lost: Tensor, max_acc_drop: float) -> int | None:
    """The index of the mask that prunes most among those that lose, float `[T]`, at most `max_acc_drop`; None: none does."""
    pruned = (~curve.masks).sum(1)
    allowed = (lost <= max_acc_drop + 1e-9) & (pruned > 0)
    return int(torch.where(allowed, pruned, 0).argmax()) if bool(allowed.any()) else None


def at_most(values: Tensor, thresholds: Sequence[float]) -> Curve:
    """Prune the units whose value, float [U], is at most the threshold; `thresholds` ascend."""
    limits = torch.tensor(list(thresholds), dtype=values.dtype)
    return Curve(tuple(thresholds), values.detach().cpu()[None] > limits[:, None])


def above(scores: Tensor, thresholds: Sequence[float]) -> Curve:
    """Prune the units whose score, float [U], exceeds the threshold; `thresholds` descend. A score of nan is kept."""
    limits = torch.tensor(list(thresholds), dtype=scores.dtype)
    return Curve(tuple(thresholds), ~(scores.detach().cpu()[None] > limits[:, None]))


def first_share(order: Tensor, units: int, shares: Sequence[float]) -> Curve:
    """Prune the first units of `order`, int64 [M]: as many as each of `shares` (ascending, of M), rounded up."""
    masks = torch.ones((len(shares), units), dtype=torch.bool)
    for row, share in zip(masks, shares, strict=True):
        row[order[: -int(-share * len(order) // 1)]] = False
    return Curve(tuple(shares), masks)


def layer_z(victim: Victim, values: Tensor) -> Tensor:
    """Values, float [U], in standard deviations from the mean of their own layer; 0 where a layer has no spread."""
    parts = []
    for part in values.split([layer.units for layer in victim.layers]):
        spread = part.std() if len(part) > 1 else torch.zeros(())
        parts.append((part - part.mean()) / spread if spread > 0 else torch.zeros_like(part))
    return torch.cat(parts)
