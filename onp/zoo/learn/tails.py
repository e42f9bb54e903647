"""The verdict's model: how rare each detector's anomaly is among the classes of clean networks, taken together.

Every detector says minus the logarithm of the share of clean classes with an anomaly index as high, as in Fisher's method of
combining p-values (Fisher 1932, "Statistical Methods for Research Workers", section 21.1). Of costs that mean the same in every
network (`onp.detect.probability.COMPARED`), the share of clean classes that cost as little counts too: it says the geometric
mean of both. Fisher sums over independent tests; detectors of one kind depend on each other, so the Euclidean norm is taken
over each kind and summed over the kinds. No backdoor is needed for it, so a backdoor of any kind is as new to it as another.
What is learned of backdoored networks is the slope of the sum and the constants, see `onp.zoo.learn.validation.calibrate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onp.detect.class_features import CHEAPNESS, FEATURES, INDEX, Array
from onp.detect.probability import (
    COMPARED,
    GROUPS,
    USUAL_CLASSES,
    DetectorTerm,
    GroupModel,
    Points,
    added_by,
    heights,
    kind_of,
    rarity,
)
from onp.zoo.learn.design import Design, Rows

SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Of clean classes with an index as high: where the functions bend. What half of the classes have says nothing."""
FIRST_OF_TAIL = 2  # of `SHARES`: from there on the last slope is taken, which goes on beyond the last share
MOST = 25.0  # nats that one feature of a detector says
BOTH = 1.5  # that their nats are multiplied by: to be rare in both respects says more than in one
DEPENDENCE = 0.6  # of the sum that counts against the number of classes, before calibration
FEWEST = 50  # classes of clean networks that a detector measured; with fewer it says nothing


@dataclass(frozen=True, eq=False)
class FittedTails:
    """What was learned from the clean networks of some rows."""

    design: Design
    floors: Array  #: per detector
    points: tuple[dict[str, Points], ...]  #: per detector, by feature; empty for one that says nothing
    usual: Array  #: per detector: nats that it says of a class of a clean network, on average

    def nats(self, rows: Rows) -> Array:
        """What each detector says, `[rows, C, detectors]`; nothing of a class that it did not measure."""
        features = self.design.features(self.floors)[rows]
        found = np.zeros(features.shape[:-1])
        for d, points in enumerate(self.points):
            if points:
                found[..., d] = _rarity_of(features[..., d, :], points, self.usual[d])
        return found

    def log_odds(self, rows: Rows) -> Array:
        """All of it, less the logarithm of the number of classes, which are as likely targets; -inf where there is no class."""
        added = added_by(self.nats(rows), self.design.detectors)
        scores = DEPENDENCE * added.sum(2) - np.log(self.design.classes[rows] / USUAL_CLASSES)[:, None]
        return np.where(self.design.exists[rows], scores, -np.inf)

    def groups(self, slope: float, bias: tuple[float, ...]) -> dict[str, GroupModel]:
        """As the verdict has it.

        Args:
            slope: that the scores are multiplied by.
            bias: per group, added to them.
        """
        of_nats, terms = slope * DEPENDENCE, {}
        for name, points, usual in zip(self.design.detectors, self.points, self.usual, strict=True):
            if points:
                scaled = {
                    feature: tuple((round(x, 4), round(of_nats * y, 4)) for x, y in corners)
                    for feature, corners in points.items()
                }
                terms[name] = DetectorTerm(scaled, round(of_nats * float(usual), 4))
        found = {}
        for g, group in enumerate(GROUPS):
            never = [d for d in self._never(g) if self.design.detectors[d] in terms]
            # Nobody wants to read what BN statistics add where there are none.
            constant = bias[g] + of_nats * float(added_by(self.usual[never], [self.design.detectors[d] for d in never]).sum())
            kept = {name: term for d, name in enumerate(self.design.detectors) if (term := terms.get(name)) and d not in never}
            found[group] = GroupModel(round(constant, 4), round(-slope, 4), kept)
        return found

    def _never(self, group: int) -> list[int]:
        """Detectors of kinds that measure nothing in a group of networks."""
        rows = self.design.group == group
        missing = [bool(rows.any() and np.isnan(self.design.costs[rows, :, d]).all()) for d in range(len(self.points))]
        kinds = [kind_of(name) for name in self.design.detectors]
        measuring = {kind for kind, gone in zip(kinds, missing, strict=True) if not gone}
        return [d for d, kind in enumerate(kinds) if kind not in measuring]


def fit_tails(design: Design, rows: Rows) -> FittedTails:
    """Learn how high the anomaly indices of clean networks are.

    Args:
        design: of all networks.
        rows: of the networks to learn from; the clean ones count.
    """
    floors = design.floors(rows)
    clean = rows[design.clean[rows]]
    features, weight = design.features(floors)[clean], design.weight[clean]
    points: list[dict[str, Points]] = []
    usual = np.zeros(len(design.detectors))
    for d, name in enumerate(design.detectors):
        known = np.isfinite(features[:, :, d]).all(-1)
        measured, of_row = features[:, :, d][known], np.broadcast_to(weight[:, None], known.shape)[known]
        of_features = {}
        if len(measured) >= FEWEST:
            times = BOTH if name in COMPARED else 1.0
            for feature in (INDEX, CHEAPNESS) if name in COMPARED else (INDEX,):
                corners = tail(measured[:, FEATURES.index(feature)], of_row)
                of_features[feature] = tuple((x, times * y) for x, y in corners)
            usual[d] = np.average(_rarity_of(measured, of_features, 0.0), weights=of_row)
        points.append(of_features)
    return FittedTails(design, floors, tuple(points), usual)


def _rarity_of(features: Array, points: dict[str, Points], missing: float) -> Array:
    """Nats that a detector says, `[..., C]` of `[..., C, features]`."""
    return rarity([heights(features[..., FEATURES.index(name)], corners) for name, corners in points.items()], missing)


def tail(values: Array, weight: Array) -> Points:
    """Nats that an anomaly index is worth: minus log of twice the share of values as high; piecewise linear, to `MOST`.

    Args:
        values: anomaly indices of classes of clean networks.
        weight: of each class, above 0: less for those of networks with several splits.

    Example:
        >>> points = tail(np.linspace(0, 10, 1001), np.ones(1001))
        >>> [(round(x, 2), round(y, 2)) for x, y in points[:3]]
        [(5.0, 0.0), (8.0, 0.92), (9.0, 1.61)]
    """
    order = np.argsort(values, kind="stable")
    place = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    corners = np.interp([1 - share for share in SHARES], place, values[order]) + 1e-6 * np.arange(len(SHARES))
    heights = [math.log(SHARES[0] / share) for share in SHARES]
    slope = (heights[-1] - heights[FIRST_OF_TAIL]) / (corners[-1] - corners[FIRST_OF_TAIL])
    corners = np.append(corners, corners[-1] + (MOST - heights[-1]) / slope)
    return tuple((float(x), y) for x, y in zip(corners, (*heights, MOST), strict=True))
