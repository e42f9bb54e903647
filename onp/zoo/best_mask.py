"""The best mask that can be found with the true trigger: the limit of every search without it, and a label to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.engine.evaluator import Evaluator, Scores
from onp.search.features import LEAST_COST, Saliency
from onp.search.objective import ACC_LOST_PER_NAT
from onp.search.ranking import largest_size, top_masks

ACC_BUDGET = 0.01  #: the ACC that a mask may cost, as a share
FIRST_MASKS = 20  # of each order
MOST_EVALUATIONS, GROUP = 2_000, 24
PATIENCE = 4  # groups of toggles in a row without gain
LEAST_GAIN = 3e-3  # of the value: a group that gains no more counts as one without gain
SHARPNESS = 8.0  # of the draw of units by their rank: exp(-SHARPNESS * rank / candidates)


@dataclass(frozen=True, eq=False)
class BestMask:
    """The mask and how it was come by."""

    keep: Tensor  #: bool `[V]`; prunes nothing where no mask is within the budget
    path: Tensor  #: bool `[P, V]`, the masks that were the best so far, in order
    evaluations: int


@dataclass(frozen=True, eq=False)
class TrueScoring:
    """Who scores masks with the true trigger."""

    searched: Evaluator  #: clean and triggered images that the search sees
    validated: Evaluator  #: other clean images, on which the mask is chosen among the best ones
    saliency: Saliency  #: first-order effects on the true ASR and on ACC
    evaluations: int = MOST_EVALUATIONS  #: masks scored at most


def best_mask(scoring: TrueScoring, orders: Sequence[Tensor], generator: torch.Generator) -> BestMask:
    """Search for the lowest true ASR within `ACC_BUDGET`.

    Prefixes of the orders first. Then, from the best mask on, prefixes of the first-order effects measured there anew, to prune
    and to bring back. Then random groups of a few toggles each, units of large effects first, as in an evolution strategy with
    one parent; the first-order effects are measured again after each gain. Of all masks that were the best so far, the last one
    that keeps to the budget on other images is taken, since the best of hundreds overfits the images that it is chosen on.

    Args:
        scoring: scores masks.
        orders: scores float `[V]`; what is highest is pruned first, and nothing of 0 or less.
        generator: of the random toggles.
    """
    search = _Search(scoring)
    search.improve(torch.cat([top_masks(order, FIRST_MASKS) for order in orders]))
    while search.left() and search.improve(_prefixes(search.keep, *scoring.saliency.at(search.keep))):
        pass
    attack, acc = scoring.saliency.at(search.keep)
    without_gain = 0
    while search.left() and without_gain < PATIENCE:
        if search.improve(_toggled(search.keep, attack, acc, generator)):
            without_gain = 0
            attack, acc = scoring.saliency.at(search.keep)
        else:
            without_gain += 1
    path = torch.stack([torch.ones_like(search.keep), *search.path])
    lost = acc_loss(scoring.validated)(path)
    last = int((lost <= ACC_BUDGET).nonzero()[-1, 0])  # the first one prunes nothing and loses nothing
    return BestMask(path[last], path[1:], scoring.searched.evaluations)


def acc_loss(evaluator: Evaluator) -> Callable[[Tensor], Tensor]:
    """From masks bool `[B, V]` to the ACC that they cost, float64 `[B]`.

    The mean of three estimates, none of which may make up for another: images that become wrong, the labels' probability that
    is lost, and `ACC_LOST_PER_NAT` times the divergence.
    """
    (base,) = [evaluator.score(torch.ones(1, evaluator.units, dtype=torch.bool))]

    def loss(masks: Tensor) -> Tensor:
        return _acc_loss(base, evaluator.score(masks))

    return loss


def _acc_loss(base: Scores, scores: Scores) -> Tensor:
    counted, soft = (base.acc - scores.acc).clamp_min(0), (base.acc_soft - scores.acc_soft).clamp_min(0)
    return (counted + soft + ACC_LOST_PER_NAT * (scores.divergence - base.divergence).clamp_min(0)) / 3


class _Search:
    """The best mask so far."""

    def __init__(self, scoring: TrueScoring) -> None:
        self._evaluator, self._most = scoring.searched, scoring.evaluations
        self.keep = torch.ones(self._evaluator.units, dtype=torch.bool)
        self._base = self._evaluator.score(self.keep[None])
        self._value = float(self._values(self.keep[None])[0])
        self.path: list[Tensor] = []

    def left(self) -> int:
        return max(0, self._most - self._evaluator.evaluations)

    def improve(self, masks: Tensor) -> bool:
        """Take the best of the masks if it is better than the current one; whether it is by more than `LEAST_GAIN`."""
        masks = masks[: self.left()]
        if not len(masks):
            return False
        values = self._values(masks)
        gain = float(values.max()) - self._value
        if gain > 0:
            self.keep, self._value = masks[values.argmax()], float(values.max())
            self._evaluator.commit(self.keep)
            self.path.append(self.keep)
        return gain > LEAST_GAIN

    def _values(self, masks: Tensor) -> Tensor:
        """Minus the ASR, minus the ACC lost; nothing beyond the budget is better than the unpruned network."""
        scores = self._evaluator.score(masks)
        lost = _acc_loss(self._base, scores)
        asr = (scores.asr[:, 0] + scores.asr_soft[:, 0]) / 2
        return torch.where(lost <= ACC_BUDGET, -asr - lost, -torch.inf)


def _prefixes(keep: Tensor, attack: Tensor, acc: Tensor) -> Tensor:
    """Masks that prune more of what carries the attack, or bring back what costs most accuracy."""
    ratio = attack.clamp_min(0) / (acc.clamp_min(0) + LEAST_COST)
    masks = [keep & top_masks(torch.where(keep, order, 0.0), FIRST_MASKS // 2) for order in (ratio, attack)]
    back = torch.where(keep, 0.0, _useful(attack, acc))
    if largest_size(back):
        masks.append(keep | ~top_masks(back, FIRST_MASKS // 2))
    return torch.cat(masks)


def _toggled(keep: Tensor, attack: Tensor, acc: Tensor, generator: torch.Generator) -> Tensor:
    """A group of masks, each 1 to 8 toggles from `keep`."""
    ratio = attack.clamp_min(0) / (acc.clamp_min(0) + LEAST_COST)
    chance = torch.zeros(len(keep))
    for units, order in ((keep, ratio), (~keep, _useful(attack, acc))):
        members = units.nonzero()[:, 0]
        if len(members):
            rank = order[members].argsort(descending=True).argsort().float()
            weight = torch.exp(-SHARPNESS * rank / len(members))
            chance[members] = weight / weight.sum()
    masks = keep.repeat(GROUP, 1)
    for row in range(GROUP):
        count = 2 ** int(torch.randint(4, (1,), generator=generator))
        toggles = torch.multinomial(chance, min(count, int((chance > 0).sum())), generator=generator)
        masks[row, toggles] ^= True
    return masks


def _useful(attack: Tensor, acc: Tensor) -> Tensor:
    """Above 0 for every unit; higher for those whose return gives more accuracy, and less attack."""
    gain = acc - attack
    return gain - gain.min() + 1e-6
