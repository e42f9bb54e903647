"""The verdict's model: a conditional logit of classes with an outside option, rising with every feature of every detector.

The log odds of a class are sums of ramps, each with a weight of 0 or more. Networks with and without statistics of batch norms
share weights, and each group may add to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from onp.detect.class_features import CONTRAST, FEATURES, INDEX, Array
from onp.detect.probability import GROUPS, USUAL_CLASSES, DetectorTerm, GroupModel
from onp.zoo.learn.design import Design, Rows

CORNERS = {INDEX: (1.0, 10.0), CONTRAST: (0.0, 20.0)}
"""Where the functions begin, bend and end. More corners than these two are learned from too few networks."""


@dataclass(frozen=True)
class LogitConfig:
    """Penalties, in nats of the whole training set; the same for all detectors."""

    ridge: float = 0.5  #: on squared weights that the groups share
    group_ridge: float = 2.0  #: on squared weights that a group adds, and on squared constants
    lasso: float = 0.01  #: on weights: detectors that add nothing get none
    pair: tuple[float, float] = (math.log(0.05), 1.0)  #: mean and deviation of the prior of log `pair`


@dataclass(frozen=True, eq=False)
class FittedLogit:
    """Weights of a fit."""

    design: Design
    floors: Array
    weights: Array  #: `[groups, detectors * ramps]`
    missing: Array  #: `[detectors]`
    bias: Array  #: `[groups]`
    log_classes: float
    pair: float

    def log_odds(self, rows: Rows) -> Array:
        """`[rows, C]`; -inf for classes that do not exist."""
        design = self.design
        ramps, missing = _ramps(design.features(self.floors)[rows])
        group = design.group[rows]
        scores = np.einsum("rcp,rp->rc", ramps, self.weights[group])
        scores += (missing @ self.missing + self.bias[group] + self.log_classes * _log_classes(design, rows))[:, None]
        return np.where(design.exists[rows], scores, -np.inf)

    def groups(self) -> dict[str, GroupModel]:
        """As the verdict has it; detectors that a group never has are left out."""
        count = sum(len(corners) - 1 for corners in CORNERS.values())
        found = {}
        for g, group in enumerate(GROUPS):
            weights = self.weights[g].reshape(len(self.design.detectors), count)
            rows, bias, terms = self.design.group == g, float(self.bias[g]), {}
            for d, name in enumerate(self.design.detectors):
                if rows.any() and np.isnan(self.design.costs[rows, :, d]).all():
                    bias += float(self.missing[d])
                    continue
                points, first = {}, 0
                for feature, corners in CORNERS.items():
                    heights = np.concatenate(([0.0], np.cumsum(weights[d, first : first + len(corners) - 1])))
                    points[feature] = tuple((x, round(float(y), 4)) for x, y in zip(corners, heights, strict=True))
                    first += len(corners) - 1
                terms[name] = DetectorTerm(points, round(float(self.missing[d]), 4))
            found[group] = GroupModel(round(bias, 4), round(self.log_classes, 4), terms)
        return found


def fit_logit(design: Design, rows: Rows, config: LogitConfig = LogitConfig()) -> FittedLogit:
    """Fit the model to some rows by penalised maximum likelihood.

    Args:
        design: of all networks.
        rows: of the networks to learn from.
        config: penalties.
    """
    floors = design.floors(rows)
    ramps, missing = _ramps(design.features(floors)[rows])
    exists, group, log_classes = design.exists[rows], design.group[rows], _log_classes(design, rows)
    here = np.nonzero(exists)
    flat = sparse.csr_array(ramps[here])
    parts = [np.flatnonzero(group[here[0]] == g) for g in range(len(GROUPS))]
    blocks = [flat[part] for part in parts]
    p, d, groups = ramps.shape[2], missing.shape[1], len(GROUPS)
    targets, weight = design.is_target[rows], design.weight[rows]

    def split(theta: Array) -> tuple[Array, Array, Array, Array, float, float]:
        shared, added, rest = theta[:p], theta[p : p * (1 + groups)].reshape(groups, p), theta[p * (1 + groups) :]
        return shared, added, rest[:d], rest[d : d + groups], float(rest[-2]), float(rest[-1])

    def loss(theta: Array) -> tuple[float, Array]:
        shared, added, constants, bias, slope, log_pair = split(theta)
        scores = np.full(exists.shape, -np.inf)
        values = np.empty(len(here[0]))
        for g, (part, block) in enumerate(zip(parts, blocks, strict=True)):
            values[part] = block @ (shared + added[g])
        scores[here] = values
        scores += (missing @ constants + bias[group] + slope * log_classes)[:, None]
        nats, by_score, by_pair = likelihood(scores, targets, log_pair)
        by_score *= weight[:, None]
        by_row = by_score.sum(1)
        by_group = np.stack([block.T @ by_score[here][part] for part, block in zip(parts, blocks, strict=True)])
        mean, deviation = config.pair
        total = float(nats @ weight) + config.ridge * shared @ shared / 2 + config.lasso * (shared.sum() + added.sum())
        total += config.group_ridge * ((added**2).sum() + constants @ constants + slope**2) / 2
        total += ((log_pair - mean) / deviation) ** 2 / 2
        gradient = np.concatenate((
            by_group.sum(0) + config.ridge * shared + config.lasso,
            (by_group + config.group_ridge * added + config.lasso).ravel(),
            missing.T @ by_row + config.group_ridge * constants,
            np.bincount(group, by_row, groups),
            [by_row @ log_classes + config.group_ridge * slope],
            [float(by_pair @ weight) + (log_pair - mean) / deviation**2],
        ))  # fmt: skip
        return total, gradient

    start = np.concatenate((np.full(p, 0.05), np.zeros(p * groups + d), np.full(groups, -4.0), [0.0], [config.pair[0]]))
    bounds = [(0.0, None)] * (p * (1 + groups)) + [(None, None)] * (d + groups + 2)
    done = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    shared, added, constants, bias, slope, log_pair = split(done.x)
    return FittedLogit(design, floors, shared + added, constants, bias, slope, math.exp(log_pair))


def likelihood(scores: Array, targets: NDArray[np.bool_], log_pair: float) -> tuple[Array, Array, Array]:
    """Negative log likelihood of what is known of each network, and its derivatives.

    Of a network with backdoors, that it has one, and that no class but theirs is a target.

    Args:
        scores: log odds `[R, C]`, -inf where there is no class.
        targets: bool `[R, C]`; none for a network without a backdoor.
        log_pair: see `onp.detect.probability.probabilities`.

    Returns:
        nats `[R]`, derivative by the scores `[R, C]`, derivative by `log_pair` `[R]`.
    """
    pair = math.exp(log_pair)
    highest = np.maximum(scores.max(1), 0.0)
    odds, unit = np.exp(scores - highest[:, None]), np.exp(-highest)

    def sums(odds: Array) -> tuple[Array, Array, Array]:
        """Of all sets of targets: their weight, its derivative by each score, the weight of pairs alone."""
        each = unit[:, None] * odds + pair * odds * (odds.sum(1, keepdims=True) - odds)
        pairs = pair * (odds.sum(1) ** 2 - (odds**2).sum(1)) / 2
        return unit * odds.sum(1) + pairs, each, pairs

    total, each, pairs = sums(odds)
    total += unit**2
    known, known_each, known_pairs = sums(np.where(targets, odds, 0.0))
    known = np.where(targets.any(1), known, unit**2)
    known = np.maximum(known, 1e-300)
    nats = np.log(total) - np.log(known)
    by_score = each / total[:, None] - known_each / known[:, None]
    return nats, by_score, pairs / total - known_pairs / known


def _ramps(features: Array) -> tuple[Array, Array]:
    """Shares of each ramp that the features have climbed `[R, C, detectors * ramps]`; missing detectors `[R, detectors]`."""
    found = []
    for name, corners in CORNERS.items():
        values = features[..., FEATURES.index(name)]
        found += [((values - low) / (high - low)).clip(0, 1) for low, high in pairwise(corners)]
    ramps: Array = np.nan_to_num(np.stack(found, -1))
    missing = np.asarray(np.isnan(features[..., 0]).all(1), dtype=np.float64)
    return ramps.reshape(*ramps.shape[:2], -1), missing


def _log_classes(design: Design, rows: Rows) -> Array:
    return np.log(design.classes[rows] / USUAL_CLASSES)
