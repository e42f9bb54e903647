"""The best mask that can be found with the true trigger: the limit of every search without it, and a label to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.engine.evaluator import Evaluator, Scores
from onp.search.features import LEAST_COST, Saliency
from onp.search.objective import expected_acc_loss
from onp.search.ranking import largest_size, top_masks

ACC_BUDGET = 0.01  #: the ACC that a mask may cost, as a share
CHECKED, HOPED = 4, 1.5  # masks of a group that are checked, and the part of the budget that they may cost before that
FIRST_MASKS = 20  # of each order
MOST_EVALUATIONS, GROUP = 2_000, 24
PATIENCE = 6  # groups of toggles in a row without gain
LEAST_GAIN = 3e-3  # of the value: a group that gains no more counts as one without gain
SHARPNESS = 8.0  # of the draw of units by their rank: exp(-SHARPNESS * rank / candidates)


@dataclass(frozen=True, eq=False)
class BestMask:
    """The mask and how it was come by."""

    keep: Tensor  #: bool `[V]`; prunes nothing where no mask is within the budget
    path: Tensor  #: bool `[P, V]`, the masks that were the best at some time, `keep` among them
    evaluations: int


@dataclass(frozen=True, eq=False)
class TrueScoring:
    """Who scores masks with the true trigger."""

    searched: Evaluator  #: clean and triggered images that the search sees
    validated: Evaluator  #: other clean images, which decide on the ACC that a mask loses
    saliency: Saliency  #: first-order effects on the true ASR and on ACC
    evaluations: int = MOST_EVALUATIONS  #: masks scored at most


def best_mask(scoring: TrueScoring, orders: Sequence[Tensor], generator: torch.Generator) -> BestMask:
    """Search for the lowest true ASR within `ACC_BUDGET`.

    Prefixes of the orders first. Then, from the best mask on, prefixes of what is left of them and of the first-order effects,
    measured there anew, to prune and to bring back. Then random groups of a few toggles each, drawn along one of the orders, as
    in an evolution strategy with one parent; the first-order effects are measured again after each gain.

    Args:
        scoring: scores masks.
        orders: scores float `[V]`; what is highest is pruned first, and nothing of 0 or less.
        generator: of the random toggles.
    """
    search = _Search(scoring)
    search.improve(torch.cat([top_masks(order, FIRST_MASKS) for order in orders]))
    effects = scoring.saliency.at(search.keep)
    while search.left() and search.improve(_prefixes(search.keep, orders, *effects)):
        effects = scoring.saliency.at(search.keep)
    without_gain = 0
    while search.left() and without_gain < PATIENCE:
        if search.improve(_toggled(search.keep, _chances(search.keep, orders, *effects), generator)):
            without_gain, effects = 0, scoring.saliency.at(search.keep)
        else:
            without_gain += 1
    return BestMask(search.keep, torch.stack([search.keep, *search.path]), scoring.searched.evaluations)


def _acc_loss(base: Scores, scores: Scores) -> Tensor:
    """The ACC that masks cost, float64 `[B]`; images that become right do not make up for others."""
    return expected_acc_loss((base.acc - scores.acc).clamp_min(0), scores.divergence - base.divergence)


class _Search:
    """The best mask so far."""

    def __init__(self, scoring: TrueScoring) -> None:
        self._searched, self._validated, self._most = scoring.searched, scoring.validated, scoring.evaluations
        self.keep = torch.ones(self._searched.units, dtype=torch.bool)
        self._bases = [evaluator.score(self.keep[None]) for evaluator in (self._searched, self._validated)]
        self._value = -self._asr(self._bases[0])[0].item()
        self.path: list[Tensor] = []

    def left(self) -> int:
        return max(0, self._most - self._searched.evaluations)

    def improve(self, masks: Tensor) -> bool:
        """Take the best of the masks if it is better than the current one; whether it is by more than `LEAST_GAIN`.

        The best of many overfits the images that it is chosen on. So the few best ones are checked on other images, which
        decide on the ACC that is lost.
        """
        masks = masks[: self.left()]
        if not len(masks):
            return False
        scores = self._searched.score(masks)
        asr, lost = self._asr(scores), _acc_loss(self._bases[0], scores)
        hoped = torch.where(lost <= HOPED * ACC_BUDGET, -asr - lost, -torch.inf)
        rows = hoped.topk(min(CHECKED, len(masks))).indices
        rows = rows[hoped[rows] > self._value]
        if not len(rows):
            return False
        lost = _acc_loss(self._bases[1], self._validated.score(masks[rows]))
        values = torch.where(lost <= ACC_BUDGET, -asr[rows] - lost, -torch.inf)
        gain = float(values.max()) - self._value
        if gain > 0:
            self.keep, self._value = masks[rows[values.argmax()]], float(values.max())
            self._searched.commit(self.keep)
            self.path.append(self.keep)
        return gain > LEAST_GAIN

    @staticmethod
    def _asr(scores: Scores) -> Tensor:
        """The mean of a share of images and a mean probability, float64 `[B]`."""
        return (scores.asr[:, 0] + scores.asr_soft[:, 0]) / 2


def _prefixes(keep: Tensor, orders: Sequence[Tensor], attack: Tensor, acc: Tensor) -> Tensor:
    """Masks that prune more of what carries the attack, or bring back what costs most accuracy."""
    ratio = attack.clamp_min(0) / (acc.clamp_min(0) + LEAST_COST)
    masks = [keep & top_masks(torch.where(keep, order, 0.0), FIRST_MASKS // 2) for order in (*orders, ratio)]
    back = torch.where(keep, 0.0, _useful(attack, acc))
    if largest_size(back):
        masks.append(keep | ~top_masks(back, FIRST_MASKS // 2))
    return torch.cat(masks)


def _chances(keep: Tensor, orders: Sequence[Tensor], attack: Tensor, acc: Tensor) -> Tensor:
    """How likely each unit is toggled, float32 `[orders + 1, V]`: pruned by its rank in one order, or brought back."""
    ratio = attack.clamp_min(0) / (acc.clamp_min(0) + LEAST_COST)
    back = _by_rank(~keep, _useful(attack, acc))
    return torch.stack([_by_rank(keep, order) + back for order in (*orders, ratio)])


def _by_rank(units: Tensor, order: Tensor) -> Tensor:
    """Falls with the rank of the units in the order, and sums to 1 over them; 0 for others."""
    chance, members = torch.zeros(len(units)), units.nonzero()[:, 0]
    if len(members):
        rank = order[members].argsort(descending=True).argsort().float()
        weight = torch.exp(-SHARPNESS * rank / len(members))
        chance[members] = weight / weight.sum()
    return chance


def _toggled(keep: Tensor, chances: Tensor, generator: torch.Generator) -> Tensor:
    """A group of masks, each 1 to 8 toggles from `keep`, drawn by one row of `chances`."""
    masks = keep.repeat(GROUP, 1)
    for row in range(GROUP):
        count, chance = 2 ** int(torch.randint(4, (1,), generator=generator)), chances[row % len(chances)]
        toggles = torch.multinomial(chance, min(count, int((chance > 0).sum())), generator=generator)
        masks[row, toggles] ^= True
    return masks


def _useful(attack: Tensor, acc: Tensor) -> Tensor:
    """Above 0 for every unit; higher for those whose return gives more accuracy, and less attack."""
    gain = acc - attack
    return gain - gain.min() + 1e-6
