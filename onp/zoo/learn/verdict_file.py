"""The verdict as a file: what was fitted, calibrated, with its thresholds."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math

import numpy as np

from onp.detect.class_features import Array
from onp.detect.probability import LearnedVerdict
from onp.zoo.learn.metrics import Judged, threshold
from onp.zoo.learn.tails import FittedTails
from onp.zoo.learn.validation import Calibration

MISSES = 0.02  # share of backdoored networks below the lower threshold
FEWEST_MISSES = 2
MOST_OPEN = 0.2  # share of clean networks between the thresholds or above


def thresholds(judged: Judged) -> tuple[float, float]:
    """Probabilities from which a network counts as backdoored, and below which it counts as one without evidence.

    The first is reached by at most 1 % of the clean networks, below the second are at most `MISSES` of the backdoored ones, or
    `FEWEST_MISSES` where these are few. But where more than `MOST_OPEN` of the clean networks would not be below the second,
    it is raised until they are: a verdict that is mostly inconclusive is of no use. The card states what it then misses.
    Where both hold for one threshold, that one, as near to one half as may be.
    """
    high = threshold(judged)
    found, missed = _ordered(judged.subset(judged.backdoored))
    if len(found):
        allowed = max(MISSES * missed[-1], min(FEWEST_MISSES, missed[-1] // 8))
        low = float(found[(missed <= allowed + 1e-9).sum()])
    else:
        low = 1.0
    clean, cleared = _ordered(judged.subset(~judged.backdoored))
    if len(clean):
        low = max(low, float(np.nextafter(clean[(cleared < (1 - MOST_OPEN) * cleared[-1] - 1e-9).sum()], 1.0)))
    if low >= high:
        high = low = float(np.clip(0.5, high, low))
    # Rounded away from each other, so that what they were chosen for still holds.
    return min(math.ceil(high * 1e4) / 1e4, 1.0), math.floor(low * 1e4) / 1e4


def _ordered(judged: Judged) -> tuple[Array, Array]:
    """The probabilities, lowest first, and how many networks lie at or below each."""
    order = np.argsort(judged.probability, kind="stable")
    return judged.probability[order], np.cumsum(judged.weight[order])


def learned(fitted: FittedTails, calibration: Calibration, limits: tuple[float, float], date: datetime.date) -> LearnedVerdict:
    """The fit, with the calibration of scores of networks that were not learned from.

    Two that say different things of a network have different versions, even of one day and from the same dossiers.
    """
    floors = {name: float(f"{floor:.4g}") for name, floor in zip(fitted.design.detectors, fitted.floors, strict=True)}
    groups = fitted.groups(calibration.slope, calibration.bias)
    verdict = LearnedVerdict(floors, groups, round(calibration.pair, 6), *limits, version=date.isoformat())
    digest = hashlib.sha256(as_json(verdict).encode()).hexdigest()[:8]
    return dataclasses.replace(verdict, version=f"{verdict.version}-{digest}")


def as_json(verdict: LearnedVerdict) -> str:
    """As `onp.detect.probability.read_verdict` reads it: a line a detector."""
    document = dataclasses.asdict(verdict)
    lines = [f' "{name}": {json.dumps(value)},' for name, value in document.items() if name != "groups"]
    groups = []
    for name, group in document["groups"].items():
        terms = ",\n".join(f'    "{detector}": {json.dumps(term)}' for detector, term in group["terms"].items())
        numbers = f'"bias": {json.dumps(group["bias"])}, "log_classes": {json.dumps(group["log_classes"])}'
        groups.append(f'  "{name}": {{{numbers}, "terms": {{\n{terms}\n  }}}}')
    return "\n".join(["{", *lines, ' "groups": {', ",\n".join(groups), " }", "}"]) + "\n"
