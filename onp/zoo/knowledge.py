"""What the defence can know of a network from one split of clean images: bank, node features, and its own scores of masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet, joined, split
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import TargetClass, TriggerBank, invert_triggers
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.probability import target_probabilities
from onp.detect.scan import scan
from onp.detect.targets import context_of
from onp.model.victim import Victim
from onp.search.features import NodeFeatures
from onp.search.problem import SearchProblem
from onp.search.setup import SearchConfig, SearchRun, bn_shift_of_units, build_env

#: Half the triggers of the preset "default" a family: the features hardly differ, and inversion takes most of the time.
CONFIG = DetectConfig(starts=2)
SCORES = ("acc", "acc_soft", "divergence", "asr", "asr_soft", "agreement", "agreement_soft")
_SEARCH = SearchConfig()


@dataclass(frozen=True)
class BankRow:
    """One family of surrogate triggers; see `onp.detect.bank.Surrogate`."""

    family: str
    weight: float
    success: float
    cost: float
    anomaly_index: float | None  #: None where detection did not invert triggers for the class
    bn_match: float | None


@dataclass(frozen=True, eq=False)
class Knowledge:
    """From one split, for one class that triggers were inverted for."""

    split: int
    target: int
    named: bool  #: the class that detection finds most probable
    log_costs: dict[str, tuple[float, ...]]
    """Of all detectors and classes, as `onp.detect.anomaly.DetectionScores` has them."""
    bank: tuple[BankRow, ...]
    features: NodeFeatures
    bn_shift: Tensor  #: float32 `[V]`, the residual that the features were made with
    bn_weight: float  #: 0 to 1, of the backdoor score in the objective; `onp.search.setup.bn_shift_of_units`
    masks: Tensor  #: int64 `[S]`, those masks of the dossier that were scored
    scores: dict[str, Tensor]
    """What the search of a repair sees of the unpruned network and then of these masks: the fields `SCORES` of
    `onp.engine.evaluator.Scores`, float32 `[1 + S, ...]`."""


@dataclass(frozen=True, eq=False)
class SplitImages:
    """A split of clean images, by its number, and what detection found with them."""

    number: int
    clean: ImageSet
    scores: DetectionScores
    named: int  #: the class that is most probably a target


def split_images(victim: Victim, number: int, clean: ImageSet, stored: Mapping[str, Sequence[float]] | None) -> SplitImages:
    """A split with its detection scores, which are measured where there are none.

    Args:
        victim: the network.
        number: of the split; also the seed of all that is drawn, as in `onp.zoo.detection`.
        clean: its images.
        stored: log costs of every detector and class that were measured before.
    """
    splits = split(clean, number)
    bn = bn_statistics(victim, joined(splits.build, splits.score))
    scores = scan(victim, splits, bn, DetectRun(seed=number)) if stored is None else DetectionScores.of(stored)
    context = context_of(victim, bn, len(splits.build) + len(splits.score))
    return SplitImages(number, clean, scores, target_probabilities(scores, context).predicted_target)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A search problem as a repair would make it, before any mask is chosen."""

    given: SplitImages
    target: int
    bank: TriggerBank
    bn_shift: tuple[Tensor, float]  #: as `onp.search.setup.bn_shift_of_units` has it
    problem: SearchProblem

    def knowledge(self, masks: Tensor, scored: Tensor) -> Knowledge:
        """What the defence can know.

        Args:
            masks: all masks of the dossier, bool `[M, V]`.
            scored: int64 `[S]`, those of them that are scored as a repair would.
        """
        unpruned = torch.ones(1, masks.shape[1], dtype=torch.bool)
        scores = self.problem.env.evaluator.score(torch.cat((unpruned, masks[scored])))
        return Knowledge(
            split=self.given.number,
            target=self.target,
            named=self.target == self.given.named,
            log_costs=self.given.scores.log_costs,
            bank=bank_rows(self.bank),
            features=self.problem.features,
            bn_shift=self.bn_shift[0],
            bn_weight=self.bn_shift[1],
            masks=scored,
            scores={name: getattr(scores, name).float() for name in SCORES},
        )


def prepare(victim: Victim, given: SplitImages, target: int) -> Prepared:
    """Invert triggers for a class, and measure the features of the units.

    Args:
        victim: the network.
        given: the clean images.
        target: the class.
    """
    splits = split(given.clean, given.number)
    seen = joined(splits.build, splits.score)
    bn = bn_statistics(victim, seen)
    run = DetectRun(CONFIG, given.number)
    bank = invert_triggers(victim, TargetClass(target, given.scores, bn_match(victim, bn)), splits, run)
    problem = build_env(victim, splits, bank, bn, SearchRun(_SEARCH, given.number))
    return Prepared(given, target, bank, bn_shift_of_units(victim, bn, seen, target), problem)


def bank_rows(bank: TriggerBank) -> tuple[BankRow, ...]:
    """The families of a bank."""
    return tuple(
        BankRow(each.family, weight, each.success, each.cost, _known(each.anomaly_index), _known(each.bn_match))
        for each, weight in zip(bank.surrogates, bank.weights, strict=True)
    )


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
