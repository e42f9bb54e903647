"""Figures of a detector of backdoored networks, with intervals over networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onp.detect.class_features import Array

FALSE_POSITIVES = 0.01
BINS = 10


@dataclass(frozen=True, eq=False)
class Judged:
    """Probabilities of networks, a row a network and split; made by `Judged.of`."""

    owner: NDArray[np.int64]  #: `[R]`, the network
    backdoored: NDArray[np.bool_]  #: `[R]`, the truth
    probability: Array  #: `[R]`
    named: NDArray[np.bool_]  #: `[R]`, the most probable class is a target
    weight: Array  #: `[R]`, of the rows of a network 1 in all, so that one with three splits counts as much as one with one

    @staticmethod
    def of(
        owner: NDArray[np.int64], backdoored: NDArray[np.bool_], probability: Array, named: NDArray[np.bool_] | None = None
    ) -> Judged:
        """Of all rows of the networks; where nothing is named, no class is right."""
        named = np.zeros(len(owner), dtype=bool) if named is None else named
        return Judged(owner, backdoored, probability, named, 1 / np.bincount(owner)[owner])

    def subset(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Judged:
        return Judged(self.owner[rows], self.backdoored[rows], self.probability[rows], self.named[rows], self.weight[rows])

    def mean(self, values: Array | NDArray[np.bool_]) -> float:
        """Over the networks, of values `[R]`; nan without rows."""
        return float(self.weight @ values / self.weight.sum()) if len(values) else float("nan")


def auc(judged: Judged) -> float:
    """Area under the ROC curve: how often a backdoored network is more probable to be one than a clean one."""
    _, level = np.unique(judged.probability, return_inverse=True)
    positive, negative = (np.bincount(level, judged.weight * kind) for kind in (judged.backdoored, ~judged.backdoored))
    if not positive.any() or not negative.any():
        return float("nan")
    below = np.cumsum(negative) - negative / 2  # of those at the same level half
    return float(positive @ below / (positive.sum() * negative.sum()))


def threshold(judged: Judged, false_positives: float = FALSE_POSITIVES) -> float:
    """The lowest threshold that no more than a share of the clean networks reaches."""
    clean = judged.subset(~judged.backdoored)
    order = np.argsort(-clean.probability, kind="stable")
    if not len(order):
        return 0.0
    reached = np.cumsum(clean.weight[order]) <= false_positives * clean.weight.sum() + 1e-9
    return float(np.nextafter(clean.probability[order[int(reached.sum())]], 1))


def true_positives(judged: Judged) -> float:
    """Share of backdoored networks found at `FALSE_POSITIVES`."""
    found = judged.subset(judged.backdoored)
    return found.mean(found.probability >= threshold(judged))


def cross_entropy(judged: Judged) -> float:
    """Mean negative log probability of the truth, in nats."""
    right = np.where(judged.backdoored, judged.probability, 1 - judged.probability)
    return judged.mean(-np.log(np.clip(right, 1e-6, 1)))


def calibration_error(judged: Judged) -> float:
    """Expected calibration error over `BINS` bins of equal width."""
    total = 0.0
    bins = np.minimum((judged.probability * BINS).astype(int), BINS - 1)
    for each in np.unique(bins):
        mine = bins == each
        total += abs(float(judged.weight[mine] @ (judged.probability[mine] - judged.backdoored[mine])))
    return total / max(float(judged.weight.sum()), 1e-9)


def right_class(judged: Judged) -> float:
    """Share of backdoored networks found at `FALSE_POSITIVES` of which the right class is the most probable."""
    found = judged.subset(judged.backdoored & (judged.probability >= threshold(judged)))
    return found.mean(found.named)


FIGURES: dict[str, Callable[[Judged], float]] = {
    "auc": auc,
    "tpr": true_positives,
    "cross_entropy": cross_entropy,
    "calibration_error": calibration_error,
    "right_class": right_class,
}


def figures(judged: Judged, draws: int) -> dict[str, list[float]]:
    """Each of `FIGURES` with its 95 % interval over draws of networks: [value, low, high]."""
    networks = np.unique(judged.owner)
    rows = [np.flatnonzero(judged.owner == network) for network in networks]
    clean = np.array([not judged.backdoored[each[0]] for each in rows])
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        # Clean and backdoored networks each: the share of either is the zoo's.
        chosen = [generator.choice(np.flatnonzero(clean == kind), int((clean == kind).sum())) for kind in (False, True)]
        drawn.append(judged.subset(np.concatenate([rows[i] for i in np.concatenate(chosen)])))
    found = {}
    for name, figure in FIGURES.items():
        values = [figure(each) for each in drawn]
        known = [value for value in values if np.isfinite(value)]
        low, high = np.percentile(known, [2.5, 97.5]) if known else (float("nan"), float("nan"))
        found[name] = [round(float(value), 4) for value in (figure(judged), low, high)]
    return found
