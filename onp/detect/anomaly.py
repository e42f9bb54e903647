"""From a detector's cost per class to an anomaly index per class.

A detector measures for each class how cheaply images are led to it. A backdoor's target costs less than other classes do by
far more than they differ among themselves, which the anomaly index measures whatever the unit of the cost is (median absolute
deviation, MAD; Neural Cleanse, Wang et al. 2019, https://doi.org/10.1109/SP.2019.00031).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LATENT = "latent"
AUGMENTATION_BIAS = "augmentation_bias"
BN_SHIFT = "bn_shift"
PRIOR_SHIFT = "prior_shift"

MAD_SCALE = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
SPREAD_FLOOR = 0.1  # least deviation between classes, of a logarithm: 10 %, which classes of clean networks differ by
# Of other detectors, in the unit of their log costs: log probability of augmented images, log odds (gratings, patches), logit
# gain in standard deviations of the logits, class prior as a share of the images, and families whose costs differ more between
# classes of clean networks (docs/ablations.md).
SPREAD_FLOORS = {
    AUGMENTATION_BIAS: 1.0,
    BN_SHIFT: 0.2,
    PRIOR_SHIFT: 0.04,
    "patch": 0.25,
    "perturbation": 0.15,
    "low_frequency": 0.25,
    "warp": 0.45,
    "head_skew": 0.2,
    "spectrum": 0.35,
    "gratings": 0.9,
    "patch_sweep": 0.7,
    "small_patch": 0.7,
    "separability": 0.03,
}
NOISE_FLOOR = 1.0  # anomaly indices up to here count as 0: on clean networks one class in seven has that much
MAXIMUM_INDEX = 6.0  # anomaly indices count no more than this beyond the noise floor


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """What all detectors measured for every class, made by `DetectionScores.of`."""

    log_costs: dict[str, tuple[float, ...]]
    """Per detector and class, low where it is suspicious: log(cost / success rate), or what the detector names; nan for a class
    that it did not measure (`onp.detect.classes_to_invert`)."""
    anomaly_index: dict[str, tuple[float, ...]]  #: per detector and class; positive where the class is anomalously cheap

    @classmethod
    def of(cls, log_costs: Mapping[str, Sequence[float]]) -> DetectionScores:
        """Compute the indices.

        Args:
            log_costs: per detector, a value for each class.
        """
        costs = {name: tuple(values) for name, values in log_costs.items()}
        return cls(costs, {name: anomaly_indices(values, spread_floor(name)) for name, values in costs.items()})


def log_costs(cost: Tensor, success: Tensor) -> tuple[float, ...]:
    """log(cost / success rate) per class, in nats: the same cost counts more where the trigger seldom works.

    Args:
        cost: float `[classes]`, above 0, in any unit.
        success: float `[classes]`, shares in [0, 1]; those below 0.02 count as 0.02.
    """
    values = torch.log(cost.double().clamp_min(1e-6)) - torch.log(success.double().clamp(0.02, 1))
    return tuple(values.tolist())


EDGE = 0.01  # added to probabilities and their complements: of a few images none differs from one in a hundred


def log_odds_costs(probability: Tensor) -> tuple[float, ...]:
    """Minus the log odds of a mean probability per class, within 4.6; nan where it is.

    Some classes of clean networks attract nine images of ten; a trigger leads all of them to its target, and log odds tell the
    one from the other.

    Args:
        probability: float `[classes]`.
    """
    chance = probability.double()
    return tuple(torch.log((1 - chance + EDGE) / (chance + EDGE)).tolist())


def spread_floor(detector: str) -> float:
    """The least deviation between classes that a detector's anomaly index is counted in, in the unit of its log costs."""
    return SPREAD_FLOORS.get(detector, SPREAD_FLOOR)


def anomaly_indices(values: Sequence[float], floor: float = SPREAD_FLOOR) -> tuple[float, ...]:
    """The `anomaly_index` of every class; nan for a class that was not measured, among which no other is compared."""
    costs = torch.tensor(values, dtype=torch.float64)
    measured = (~costs.isnan()).nonzero()[:, 0]
    count, indices = len(measured), torch.full_like(costs, torch.nan)
    if count > 1:
        own = costs[measured]
        rest = own.expand(count, -1)[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)
        middle = rest.median(1, keepdim=True).values
        spread = (MAD_SCALE * (rest - middle).abs().median(1).values).clamp_min(floor)
        indices[measured] = (middle[:, 0] - own) / spread
    return tuple(indices.tolist())


def anomaly_index(values: Sequence[float], k: int, floor: float = SPREAD_FLOOR, value: float | None = None) -> float:
    """How far class k lies below the median of the *other* classes, in their robust standard deviations (MAD).

    Args:
        values: log cost of each class; nan where it was not measured.
        k: the class.
        floor: deviations below it count as `floor`.
        value: a log cost to compare in place of `values[k]`.
    """
    replaced = values if value is None else [value if index == k else other for index, other in enumerate(values)]
    return anomaly_indices(replaced, floor)[k]


def clipped(index: float) -> float:
    """An anomaly index beyond the noise floor, 0 to `MAXIMUM_INDEX`; 0 for a class that was not measured."""
    return 0.0 if math.isnan(index) else min(max(index - NOISE_FLOOR, 0.0), MAXIMUM_INDEX)
