"""Score every class with every detector, from clean images alone."""

from __future__ import annotations

from functools import partial

import torch

from onp.data.images import Splits
from onp.detect.anomaly import AUGMENTATION_BIAS, BN_SHIFT, LATENT, PRIOR_SHIFT, DetectionScores, log_costs
from onp.detect.bn_statistics import BnStatistics, bn_shift_gain, prior_shift
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.detectors import augmentation_bias, latent_distances
from onp.detect.inversion import InversionTask, invert, success_rate
from onp.detect.pgd import PGD, target_probability
from onp.detect.trigger_families import FAMILIES
from onp.engine.differentiable import fitting_logits
from onp.model.victim import Victim


def scan_steps(config: DetectConfig) -> int:
    """How many steps `scan` counts."""
    return config.scan.steps * len(FAMILIES)


def scan(victim: Victim, clean: Splits, bn: BnStatistics, run: DetectRun) -> DetectionScores:
    """Score every class with every detector.

    Args:
        victim: the network.
        clean: the build images serve the detectors, the score images measure how often inverted triggers work.
        bn: BN statistics of the victim on build and score images together.
        run: settings, seed, progress (`scan_steps` steps) and resume store.
    """
    build, score = clean.build, clean.score
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    validation, validation_labels = score.pixels().to(victim.device), score.labels.to(victim.device)
    classes = tuple(range(victim.classes))
    costs: dict[str, tuple[float, ...]] = {}
    distances = latent_distances(victim, build)
    if distances is not None:
        costs[LATENT] = log_costs(distances, torch.ones_like(distances))
    costs[AUGMENTATION_BIAS] = tuple((-augmentation_bias(victim, build, run.seed).double().clamp_min(1e-3).log()).tolist())
    gain, prior = bn_shift_gain(victim, bn, build), prior_shift(bn)
    if gain is not None:
        costs[BN_SHIFT] = tuple((-gain.double()).tolist())
    if prior is not None:
        costs[PRIOR_SHIFT] = tuple((-prior.double()).tolist())
    logits = fitting_logits(victim)
    task = InversionTask((logits,), pixels, labels, classes)
    for family in FAMILIES:
        triggers = invert(family, task, run.config.scan, run)
        rates = [success_rate(logits, partial(triggers.apply, row=k), validation, validation_labels, k) for k in classes]
        costs[family.name] = log_costs(triggers.cost.cpu(), torch.tensor(rates))
    reached = target_probability(victim, pixels, labels, run.seed, run.config.scan.images)
    costs[PGD] = log_costs(torch.ones_like(reached), reached)
    return DetectionScores.of(costs, shortcuts_only=bn.left_out)
