"""The trigger bank: surrogate triggers for one target class, and the share of each family in the bank's ASR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits
from onp.detect.anomaly import DetectionScores, clipped
from onp.detect.blend import BLEND, EVIDENCE, fit_blends
from onp.detect.blend import STEPS as BLEND_STEPS
from onp.detect.bn_match import BnMatch
from onp.detect.changes import sweep_of
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.inversion import InversionTask, InvertedTriggers, invert, success_rate
from onp.detect.last_features import reader_of
from onp.detect.pgd import PGD, pgd_radius, targeted_examples
from onp.detect.side_by_side import side_by_side
from onp.detect.small_patch import SMALL_PATCH, best_of_sweep, fit
from onp.detect.small_patch import STEPS as PATCH_STEPS
from onp.detect.trigger_families import FAMILIES, Family
from onp.engine.differentiable import Logits, fitting_logits
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim

FAMILY_NAMES = (*(family.name for family in FAMILIES), SMALL_PATCH, PGD)
MINIMUM_WEIGHT = 0.15  # of the largest; families below it are not worth their evaluations
FALLBACK_FAMILIES = ("patch", "perturbation")  # where no family is anomalous: any fixed trigger resembles one of these
MATCH_WEIGHT = 3.0  # of a family whose triggers match a fully reliable BN-statistics residual exactly
MAXIMUM_AMPLIFICATION = 8.0  # of an inverted trigger's cost


@dataclass(frozen=True)
class Surrogate:
    """Triggers of one family for one class; image i gets trigger i modulo their number."""

    family: str
    target: int
    anomaly_index: float  #: of the class, by the family's cost; see `onp.detect.anomaly`
    success: float  #: share of images of other classes, not used for inversion, that is led to the target
    cost: float  #: of the cheapest trigger, in the family's unit
    bn_match: float | None  #: cosine of what its triggers change and the BN-statistics residual; None where there is none
    apply: Callable[[Tensor], Tensor]  #: float32 images `[N, C, H, W]` in [0, 1] to triggered images


class Bank(Protocol):
    """Triggers for one target class."""

    @property
    def target(self) -> int: ...

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the weighted ASR; they sum to 1."""

    def images(self, clean: Splits) -> Splits:
        """The images that `batches` takes: the clean ones, or those of a bank of triggered images."""

    def scoring_images(self, clean: Splits) -> ImageSet:
        """Those of `images` that masks are scored on: none that a trigger was inverted on."""

    def batches(self, victim: Victim, images: ImageSet) -> list[TriggeredBatch]:
        """The images that are not of the target class, triggered and normalised, one batch a family."""


@dataclass(frozen=True)
class TriggerBank:
    """Surrogate triggers, image to image; made by `weighted_bank`."""

    surrogates: tuple[Surrogate, ...]
    weights: tuple[float, ...]  #: share of each surrogate in the bank's ASR; they sum to 1
    target: int

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.surrogates) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"{len(self.surrogates)} surrogates have weights {self.weights}, which do not sum to 1")

    def images(self, clean: Splits) -> Splits:
        return clean

    def scoring_images(self, clean: Splits) -> ImageSet:
        return clean.score

    def batches(self, victim: Victim, images: ImageSet) -> list[TriggeredBatch]:
        return [
            triggered_batch(victim, images, surrogate.family, self.target, surrogate.apply) for surrogate in self.surrogates
        ]


@dataclass(frozen=True, eq=False)
class TargetClass:
    """A class that triggers are inverted for, and what detection measured."""

    label: int
    scores: DetectionScores
    match: BnMatch | None = None  #: the residual that triggers are to match too; None where there is none
    families: frozenset[str] | None = None  #: `FAMILY_NAMES` and `BLEND` that alone are inverted; None: all of them

    def inverts(self, family: str) -> bool:
        """Whether triggers of the family may be inverted."""
        return self.families is None or family in self.families


def triggered_batch(
    victim: Victim, images: ImageSet, family: str, target: int, trigger: Callable[[Tensor], Tensor]
) -> TriggeredBatch:
    """The images that are not of the target class with a trigger on, normalised, on the victim's device."""
    others = images.subset(images.labels != target)
    pixels, labels = others.pixels().to(victim.device), others.labels.to(victim.device)
    return TriggeredBatch(family, victim.normalisation(trigger(pixels)).detach(), labels, torch.full_like(labels, target))


def weighted_bank(surrogates: Sequence[Surrogate], weights: Sequence[float], target: int) -> TriggerBank:
    """A bank of the surrogates whose weight is at least `MINIMUM_WEIGHT` of the largest.

    Args:
        surrogates: at least one.
        weights: of each, above 0; scaled to sum to 1.
        target: the class.
    """
    pairs = [pair for pair in zip(surrogates, weights, strict=True) if pair[1] >= MINIMUM_WEIGHT * max(weights)]
    total = sum(weight for _, weight in pairs)
    return TriggerBank(tuple(surrogate for surrogate, _ in pairs), tuple(weight / total for _, weight in pairs), target)


def inversion_steps(config: DetectConfig) -> int:
    """How many steps `invert_triggers` counts, at most."""
    return config.refine.steps * len(FAMILIES) + PATCH_STEPS + BLEND_STEPS


def invert_triggers(
    victim: Victim, target: TargetClass, clean: Splits, run: DetectRun, repaired: Victim | None = None
) -> TriggerBank:
    """Invert several triggers a family for one class, keep those that generalise, and weight the families.

    A family's weight is the anomaly index of the class by the family's cost. With `target.match`, every family is inverted to
    match the residual too, and its weight grows with the match, whatever its triggers cost. Without it, families that are not
    anomalous are left out; where none is, the `FALLBACK_FAMILIES` weigh alike.

    Args:
        victim: the network.
        target: the class, its detection scores and the residual to match.
        clean: triggers are inverted on the build images and kept by their success on the score images.
        run: settings, seed, progress (`inversion_steps` steps) and resume store.
        repaired: a pruned network that the triggers must work on too.
    """
    config = run.config
    match = target.match if config.refine.bn_match_weight else None
    pixels, labels = clean.build.pixels().to(victim.device), clean.build.labels.to(victim.device)
    models = tuple(fitting_logits(model) for model in (victim, repaired) if model is not None)
    scored = clean.score.pixels().to(victim.device), clean.score.labels.to(victim.device)
    validation = _Validation(models, *scored, target.label, config.minimum_success)
    indices = {name: target.scores.anomaly_index[name][target.label] for name in FAMILY_NAMES}
    anomalous = {name: clipped(index) for name, index in indices.items()}
    reliability = 0.0 if match is None else match.reliability
    if not any(anomalous.values()):
        # Other families lead to any class of many networks, in ways that only a mask which ruins the network stops.
        anomalous = {name: (1 - reliability) * (name in FALLBACK_FAMILIES) for name in anomalous}
    indices[BLEND] = target.scores.anomaly_index[EVIDENCE][target.label] if EVIDENCE in target.scores.anomaly_index else 0.0
    anomalous[BLEND] = clipped(indices[BLEND])
    anomalous = {name: anomaly * target.inverts(name) for name, anomaly in anomalous.items()}
    task = InversionTask(models, pixels, labels, (target.label,) * config.starts, match)

    def of_family(family: Family, run: DetectRun) -> Surrogate | None:
        triggers = _with_stronger(invert(family, task, config.refine, run), target.scores.log_costs[family.name])
        return _surrogate(family.name, triggers, indices[family.name], validation, match)

    def of_patches(run: DetectRun) -> Surrogate | None:
        sweep = sweep_of(reader_of(victim).logits, victim.classes, clean.build, run)
        starts = best_of_sweep(sweep, (target.label,), config.starts).T
        patches = fit(replace(task, match=None), starts, config.refine.images, run)
        return _surrogate(SMALL_PATCH, patches, indices[SMALL_PATCH], validation, match)

    def of_blends(run: DetectRun) -> Surrogate | None:
        blends = fit_blends(replace(task, match=None), config.refine.images, run)
        return _surrogate(BLEND, blends, indices[BLEND], validation, match)

    tasks: list[Callable[[DetectRun], Surrogate | None]] = [
        partial(of_family, family)
        for family in FAMILIES
        if anomalous[family.name] or (match is not None and target.inverts(family.name))
    ]
    tasks += [fitted for name, fitted in ((SMALL_PATCH, of_patches), (BLEND, of_blends)) if anomalous[name]]
    surrogates: list[Surrogate] = []
    weights: list[float] = []
    for surrogate in side_by_side(tasks, run, victim.device):
        if surrogate is None:
            continue
        weight = anomalous[surrogate.family] + MATCH_WEIGHT * reliability * max(surrogate.bn_match or 0.0, 0.0) ** 4
        if weight:  # 0 where the family is not anomalous and its triggers change the features the opposite way
            surrogates.append(surrogate)
            weights.append(weight)
    if anomalous[PGD] or not surrogates:
        radius = pgd_radius(pixels)
        attack = partial(targeted_examples, models[0], target=target.label, radius=radius)
        rate = success_rate(models[0], attack, validation.images, validation.labels, target.label)
        if rate >= config.minimum_success or not surrogates:
            surrogates.append(Surrogate(PGD, target.label, indices[PGD], rate, radius, None, attack))
            weights.append(anomalous[PGD] or 1.0)
    return weighted_bank(surrogates, weights, target.label)


@dataclass(frozen=True, eq=False)
class _Validation:
    """Clean images that no trigger was inverted on, and the networks that triggers must work on."""

    models: tuple[Logits, ...]
    images: Tensor  #: float32 `[N, C, H, W]` in [0, 1]
    labels: Tensor  #: int64 `[N]`
    target: int
    minimum_success: float  #: share of the images that a trigger must lead to the target on every network


class _Triggers(Protocol):
    """Triggers for one class, a row each."""

    @property
    def targets(self) -> tuple[int, ...]: ...

    @property
    def cost(self) -> Tensor: ...

    def apply(self, images: Tensor, row: int) -> Tensor: ...


def _surrogate(
    family: str, triggers: _Triggers, index: float, validation: _Validation, match: BnMatch | None
) -> Surrogate | None:
    """The triggers that lead enough images to the target on every network; None where no trigger does."""
    rates = [
        min(
            success_rate(model, partial(triggers.apply, row=row), validation.images, validation.labels, validation.target)
            for model in validation.models
        )
        for row in range(len(triggers.targets))
    ]
    rows = [row for row, rate in enumerate(rates) if rate >= validation.minimum_success]
    if not rows:
        return None
    apply = partial(_alternate, triggers, rows)
    others = validation.images[validation.labels != validation.target]
    return Surrogate(
        family=family,
        target=validation.target,
        anomaly_index=index,
        success=max(rates),
        cost=float(triggers.cost[rows].min()),
        bn_match=None if match is None else match.of_images(others, apply(others)),
        apply=apply,
    )


def _with_stronger(weakest: InvertedTriggers, log_costs: Sequence[float]) -> InvertedTriggers:
    """Each trigger as inverted, and again at the geometric mean of its cost and the median of other classes.

    The attacker's trigger is stronger than the weakest that works, and a mask that stops only the weakest does not stop it.
    Beyond that mean a trigger would lead to the target of a clean network as well.
    """
    rest = torch.tensor([value for index, value in enumerate(log_costs) if index != weakest.targets[0]])
    factor = torch.exp((rest.nanmedian() - weakest.cost.cpu().log()) / 2).clamp(1, MAXIMUM_AMPLIFICATION).to(weakest.cost)
    family: Family = weakest.family
    stronger = family.stronger(weakest.parameters, factor)
    parameters = tuple(torch.cat(pair) for pair in zip(weakest.parameters, stronger, strict=True))
    cost = torch.cat((weakest.cost, family.cost(stronger)))
    return InvertedTriggers(family, weakest.targets * 2, parameters, cost, weakest.worked.repeat(2))


def _alternate(triggers: _Triggers, rows: list[int], images: Tensor) -> Tensor:
    """Image i gets trigger `rows[i % len(rows)]`: several triggers at the cost of one."""
    out = torch.empty_like(images)
    with torch.no_grad():
        for index, row in enumerate(rows):
            out[index :: len(rows)] = triggers.apply(images[index :: len(rows)], row)
    return out
