"""Score every class with every detector, from clean images alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits, joined
from onp.detect.anomaly import AUGMENTATION_BIAS, BN_SHIFT, LATENT, PRIOR_SHIFT, DetectionScores, log_costs, log_odds_costs
from onp.detect.bn_statistics import BnStatistics, bn_shift_gain, prior_shift
from onp.detect.changes import CHANGE_STEPS, change_costs, sweep_of
from onp.detect.classes_to_invert import classes_to_invert
from onp.detect.config import DetectConfig, DetectRun, no_progress
from onp.detect.detectors import augmentation_bias, latent_distances
from onp.detect.feature_shift import EARLY_FEATURES, early_feature_costs
from onp.detect.head import head_costs
from onp.detect.inversion import InversionTask, invert, success_rate
from onp.detect.last_features import reader_of
from onp.detect.pgd import PGD, target_probability
from onp.detect.separability import SEPARABILITY, SEPARATED, Latent, discount_costly_classes, separability_costs
from onp.detect.side_by_side import side_by_side
from onp.detect.small_patch import SMALL_PATCH, small_patch_probability
from onp.detect.small_patch import STEPS as PATCH_STEPS
from onp.detect.spectrum import Spectrum
from onp.detect.trigger_families import FAMILIES, Family
from onp.engine.differentiable import fitting_logits
from onp.model.victim import Victim

SCANNED: tuple[Family, ...] = (*FAMILIES, Spectrum())
"""The families that triggers are inverted of for each class; banks are made of `FAMILIES` alone."""


def inverting_steps(config: DetectConfig) -> int:
    """How many steps of `scan_steps` are steps of inversion, of all chosen classes together."""
    return config.scan.steps * (len(SCANNED) + 1) + PATCH_STEPS


def scan_steps(config: DetectConfig) -> int:
    """How many steps `scan` counts."""
    return CHANGE_STEPS + inverting_steps(config)


def scan(victim: Victim, clean: Splits, bn: BnStatistics, run: DetectRun) -> DetectionScores:
    """Score every class with every detector; triggers are inverted for those that `classes_to_invert` chooses.

    Args:
        victim: the network.
        clean: the build images serve the detectors, the score images measure how often inverted triggers work.
        bn: BN statistics of the victim on build and score images together.
        run: settings, seed, progress (`scan_steps` steps) and resume store.
    """
    costs, sweep = costs_without_inversion(victim, clean.build, bn, run)
    chosen = classes_to_invert(DetectionScores.of(costs), range(victim.classes))
    costs |= _costs_by_inversion(victim, clean, (chosen, sweep), run)
    return DetectionScores.of(discount_costly_classes(costs))


def inverted(scores: DetectionScores, k: int) -> bool:
    """Whether triggers were inverted for class k."""
    return not math.isnan(scores.log_costs[PGD][k])


def with_inversion(scores: DetectionScores, k: int, victim: Victim, clean: Splits, run: DetectRun) -> DetectionScores:
    """The scores with one class more that triggers are inverted for.

    Args:
        scores: of `scan`.
        k: a class for which none were.
        victim: the network.
        clean: the images of the scan.
        run: of the scan; nothing is counted as progress.
    """
    sweep = sweep_of(reader_of(victim).logits, victim.classes, clean.build, run)
    more = _costs_by_inversion(victim, clean, ((k,), sweep), replace(run, progress=no_progress))
    costs = {name: (*values[:k], more.get(name, values)[k], *values[k + 1 :]) for name, values in scores.log_costs.items()}
    return DetectionScores.of(discount_costly_classes(costs))


def costs_without_inversion(
    victim: Victim, build: ImageSet, bn: BnStatistics, run: DetectRun
) -> tuple[dict[str, tuple[float, ...]], Tensor]:
    """Log costs of the detectors that are cheap for any number of classes; those that have no say are absent.

    Args:
        victim: the network.
        build: clean images.
        bn: BN statistics of the victim on build and score images together.
        run: seed of the random changes of images, and progress (`CHANGE_STEPS` steps).

    Returns:
        Per detector, a value for each class; and `onp.detect.changes.Changes.sweep`.
    """
    changes = change_costs(reader_of(victim).logits, victim.classes, build, run)
    costs = head_costs(victim) | changes.costs
    distances = latent_distances(victim, build)
    if distances is not None:
        costs[LATENT] = log_costs(distances, torch.ones_like(distances))
    costs[AUGMENTATION_BIAS] = tuple((-augmentation_bias(victim, build, run.seed).double().clamp_min(1e-3).log()).tolist())
    gain, prior = bn_shift_gain(victim, bn, build), prior_shift(bn)
    if gain is not None:
        costs[BN_SHIFT] = tuple((-gain.double()).tolist())
    if prior is not None:
        costs[PRIOR_SHIFT] = tuple((-prior.double()).tolist())
    return costs, changes.sweep


def _costs_by_inversion(
    victim: Victim, clean: Splits, chosen: tuple[tuple[int, ...], Tensor], run: DetectRun
) -> dict[str, tuple[float, ...]]:
    """Log costs of what is inverted for each of the chosen classes, which come with `Changes.sweep`; nan for others."""
    build, score, (classes, sweep) = clean.build, clean.score, chosen
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    validation, validation_labels = score.pixels().to(victim.device), score.labels.to(victim.device)

    def of_classes(values: tuple[float, ...]) -> tuple[float, ...]:
        found = dict(zip(classes, values, strict=True))
        return tuple(found.get(k, float("nan")) for k in range(victim.classes))

    def of_all(cost: Tensor, success: Tensor) -> tuple[float, ...]:
        return of_classes(log_costs(cost, success))

    logits, settings = fitting_logits(victim), run.config.scan
    task = InversionTask((logits,), pixels, labels, classes)
    latent = Latent.of(victim, joined(build, score))

    def of_family(family: Family, run: DetectRun) -> _Part:
        triggers = invert(family, task, settings, run)
        each = [partial(triggers.apply, row=row) for row in range(len(classes))]
        rates = [success_rate(logits, one, validation, validation_labels, k) for one, k in zip(each, classes, strict=True)]
        costs = {family.name: of_all(triggers.cost.cpu(), torch.tensor(rates))}
        if latent is None or family.name not in SEPARATED:
            return _Part(costs)
        return _Part(costs, tuple(latent.similarity(one, k) for one, k in zip(each, classes, strict=True)))

    def of_early_features(run: DetectRun) -> _Part:
        early = early_feature_costs(victim, clean, classes, settings, run)
        if early is None:
            run.progress(settings.steps, known=True)
            return _Part({})
        return _Part({EARLY_FEATURES: of_all(early[0], torch.tensor(early[1]))})

    def of_examples(run: DetectRun) -> _Part:
        reached = target_probability(victim, pixels, labels, classes, run)
        return _Part({PGD: of_all(torch.ones_like(reached), reached)})

    def of_patches(run: DetectRun) -> _Part:
        reached = small_patch_probability(task, (validation, validation_labels), sweep, run)
        return _Part({SMALL_PATCH: of_classes(log_odds_costs(reached))})

    tasks: list[Callable[[DetectRun], _Part]] = [partial(of_family, family) for family in SCANNED]
    parts = side_by_side([*tasks, of_early_features, of_patches, of_examples], run, victim.device)
    costs = {name: values for part in parts for name, values in part.costs.items()}
    similarities = [part.similarity for part in parts if not all(map(math.isnan, part.similarity))]
    if similarities:
        costs[SEPARABILITY] = of_classes(separability_costs(similarities))
    return costs


@dataclass(frozen=True)
class _Part:
    """What was inverted of one kind."""

    costs: dict[str, tuple[float, ...]]
    similarity: tuple[float, ...] = ()  #: of each class that was inverted, see `Latent.similarity`
