"""A conditional logit of classes with an outside option: no target, one, or two (McFadden 1974), and weights for detectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from onp.detect.class_features import Array
from onp.detect.probability import USUAL_CLASSES
from onp.zoo.learn.design import Design, Rows
from onp.zoo.learn.tails import FittedTails

EQUAL, OF_EQUAL = 0.3, 50.0  # prior mean of the one weight that all detectors would have, and its precision
SPREAD = 0.7  # prior deviation of the detectors' weights, as a share of that one weight
PAIR = 0.05  # weight of two targets against two independent backdoors, in learning


def weights(fitted: FittedTails, rows: Rows) -> Array:
    """Weights of 0 or more for what each detector adds, by penalised maximum likelihood, shrunk towards equal ones.

    Args:
        fitted: what the detectors add.
        rows: of the networks to learn from, clean and backdoored ones.
    """
    design, nats = fitted.design, fitted.nats(rows)
    equal = _fit(design, rows, nats.sum(2, keepdims=True), (EQUAL, OF_EQUAL))[0]
    return _fit(design, rows, nats, (float(equal), 1 / (SPREAD * float(equal)) ** 2))


def _fit(design: Design, rows: Rows, nats: Array, prior: tuple[float, float]) -> Array:
    exists, targets, weight, count = design.exists[rows], design.is_target[rows], design.balanced(rows), nats.shape[2]
    offset = -np.log(design.classes[rows] / USUAL_CLASSES)[:, None]
    mean, precision = prior

    def loss(theta: Array) -> tuple[float, Array]:
        scores = np.where(exists, nats @ theta[:count] + theta[count] + offset, -np.inf)
        values, by_score, _ = likelihood(scores, targets, math.log(PAIR))
        by_score, apart = by_score * weight[:, None], theta[:count] - mean
        gradient = np.append(np.einsum("rc,rcd->d", by_score, nats) + precision * apart, by_score.sum())
        return float(values @ weight) + precision * float(apart @ apart) / 2, gradient

    start, bounds = np.append(np.full(count, mean), -4.0), [(0.0, None)] * count + [(None, None)]
    return np.asarray(optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:count])


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
