"""Log odds of every network from a model that has seen neither its attack family nor its architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from onp.detect.class_features import Array
from onp.detect.probability import GROUPS, probabilities
from onp.zoo.learn.design import Design, Rows
from onp.zoo.learn.logit import likelihood
from onp.zoo.learn.metrics import Judged
from onp.zoo.learn.networks import Network

CALIBRATION_FOLDS = 10

Candidate = Callable[[Design, Rows, Rows], Array]
"""Learns from the rows given first, and returns scores `[rows, C]` of the second, -inf where there is no class."""


@dataclass(frozen=True)
class Fold:
    """Networks that are judged by one model, and those that it learns from; indices into `Design.networks`."""

    judged: tuple[int, ...]
    learned: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """From scores to log odds: a slope, a constant a group, and the weight of pairs."""

    slope: float
    bias: tuple[float, ...]  #: per group
    pair: float

    def log_odds(self, scores: Array, group: NDArray[np.int64]) -> Array:
        return self.slope * scores + np.array(self.bias)[group][:, None]


def folds(networks: Sequence[Network]) -> list[Fold]:
    """Leave one attack family and one architecture out, together.

    A clean network is judged without the families of a backdoored one drawn for it, so that it is judged by models of the same
    kind.
    """
    backdoored = [network for network in networks if not network.clean]
    order = np.random.default_rng(0).permutation(len(networks))
    kept_out: dict[tuple[frozenset[str], str], list[int]] = {}
    for i, network in enumerate(networks):
        mine = backdoored[order[i] % len(backdoored)].families if network.clean else network.families
        kept_out.setdefault((mine, network.arch), []).append(i)
    found = []
    for (without, arch), judged in sorted(kept_out.items(), key=lambda item: item[1]):
        learned = [i for i, each in enumerate(networks) if each.arch != arch and (each.clean or not each.families & without)]
        found.append(Fold(tuple(judged), tuple(learned)))
    return found


def out_of_fold(design: Design, candidate: Candidate) -> Array:
    """Scores `[R, C]` of all rows."""
    scores = np.full(design.exists.shape, -np.inf)
    for fold in folds(design.networks):
        rows = design.rows_of(fold.judged)
        scores[rows] = candidate(design, design.rows_of(fold.learned), rows)
    return scores


def calibrate(design: Design, scores: Array, rows: Rows) -> Calibration:
    """Fit the slope, the constants and the weight of pairs to scores of networks that were not learned from."""
    targets, weight, group = design.is_target[rows], design.weight[rows], design.group[rows]
    exists = design.exists[rows]
    finite = np.where(exists, scores[rows], 0.0)
    groups = len(GROUPS)

    def loss(theta: Array) -> tuple[float, Array]:
        slope, bias, log_pair = theta[0], theta[1 : 1 + groups], float(theta[-1])
        nats, by_score, by_pair = likelihood(
            np.where(exists, slope * finite + bias[group][:, None], -np.inf), targets, log_pair
        )
        by_score *= weight[:, None]
        gradient = [(by_score * finite).sum(), *np.bincount(group, by_score.sum(1), groups), by_pair @ weight]
        # Priors of few networks' worth: the constants of the groups differ little, pairs are rare, the slope is near 1.
        apart = bias - bias.mean()
        total = float(nats @ weight) + apart @ apart + (log_pair - math.log(0.05)) ** 2 + math.log(slope) ** 2
        gradient[0] += 2 * math.log(slope) / slope
        gradient[1 : 1 + groups] += 2 * apart
        gradient[-1] += 2 * (log_pair - math.log(0.05))
        return total, np.array(gradient, dtype=np.float64)

    # From where half of the networks have odds of 1 and more, in the unit of the scores.
    highest = np.where(exists, scores[rows], -np.inf).max(1)
    unit = max(float(highest.std()), 1e-6)
    start = np.array([1 / unit, *np.full(groups, -float(np.median(highest)) / unit), math.log(0.05)])
    bounds = [(0.01, 100.0), *[(None, None)] * (groups + 1)]
    done = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return Calibration(float(done.x[0]), tuple(done.x[1 : 1 + groups].tolist()), math.exp(done.x[-1]))


def calibrated(design: Design, scores: Array) -> Judged:
    """Probabilities of all rows, each calibrated on the scores of other networks."""
    return _calibrated(design, scores, [np.array([row]) for row in range(len(design.owner))])


def calibrated_means(design: Design, scores: Array, networks: Rows) -> Judged:
    """The same of some networks by the mean log odds of all splits of each, as `onp.detect.probability.averaged` has it."""
    return _calibrated(design, scores, [design.rows_of([network]) for network in networks])


def _calibrated(design: Design, scores: Array, together: Sequence[Rows]) -> Judged:
    """A probability for each set of rows, which are those of one network."""
    fold = np.random.default_rng(1).permutation(len(design.networks))[design.owner] % CALIBRATION_FOLDS
    first = np.array([rows[0] for rows in together])
    probability, named = np.empty(len(first)), np.empty(len(first), dtype=bool)
    for each in np.unique(fold[first]):
        learned = calibrate(design, scores, np.flatnonzero(fold != each))
        for place in np.flatnonzero(fold[first] == each):
            rows = together[place]
            log_odds = learned.log_odds(scores[rows], design.group[rows])[:, : design.classes[rows[0]]].mean(0)
            per_class, probability[place] = probabilities(log_odds, learned.pair)
            named[place] = design.is_target[rows[0], int(np.argmax(per_class))]
    return Judged.of(design.owner[first], ~design.clean[first], probability, named)
