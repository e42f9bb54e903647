"""What the log costs of a detector say of each class among the classes of its network, whatever the order of the classes.

The anomaly index is in multiples of the spread among the other classes, so that it means the same for costs in any unit. The
cost itself is compared with what classes of other networks cost, which takes a unit that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onp.detect.anomaly import MAD_SCALE

INDEX, CHEAPNESS = "index", "cheapness"
FEATURES = (INDEX, CHEAPNESS)
"""Per detector and class: the anomaly index, which is how far it lies below the median of the others in multiples of their
spread; and minus the log cost, whatever the others cost."""

FEWEST = 4  #: classes with a cost; among fewer there is no spread of the others

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Place:
    """Where each class lies among the others, in the unit of the log costs, `[classes]`; nan where it was not measured."""

    below_median: Array  #: median of the others minus its own
    spread: Array  #: robust standard deviation of the others (MAD)
    cheapness: Array  #: minus its own

    @staticmethod
    def of(values: Sequence[float] | Array) -> Place:
        """Of the log cost of each class; nan everywhere where fewer than `FEWEST` classes were measured."""
        costs = np.asarray(values, dtype=np.float64)
        measured = np.flatnonzero(np.isfinite(costs))
        found = np.full((3, len(costs)), np.nan)
        if len(measured) >= FEWEST:
            kept = costs[measured]
            median, spread = _others(kept, _middle(len(kept) - 1)), np.empty(len(kept))
            for each in set(median.tolist()):  # two at most
                deviations = _others(np.abs(kept - each), _middle(len(kept) - 1))
                spread = np.where(median == each, MAD_SCALE * deviations, spread)
            found[:, measured] = median - kept, spread, -kept
        return Place(*found)

    def features(self, floor: float | Array) -> Array:
        """The `FEATURES`, `[classes, features]`; spreads below `floor` count as `floor`."""
        return np.stack((self.below_median / np.fmax(self.spread, floor), self.cheapness), -1)


def class_features(values: Sequence[float] | Array, floor: float) -> dict[str, Array]:
    """The `FEATURES` of every class for one detector.

    Args:
        values: log cost of each class; nan where the class was not measured.
        floor: spreads among the classes below it count as `floor`, in the unit of the log costs.

    Returns:
        Per feature float64 `[classes]`; nan where the class was not measured.

    Example:
        >>> found = class_features([0.0, 2.0, 2.1, 1.9, 2.0], floor=0.1)
        >>> found["index"].round(1).tolist()
        [20.0, 0.0, -1.0, 1.0, 0.0]
    """
    return dict(zip(FEATURES, Place.of(values).features(floor).T, strict=True))


def _others(values: Array, rank: int) -> Array:
    """For each value the one of the given rank among all others, counted from 0."""
    order = np.argsort(values, kind="stable")
    ordered, ranks = values[order], np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    return np.where(ranks <= rank, ordered[rank + 1], ordered[rank])


def _middle(count: int) -> int:
    """Rank of the median, the lower one of two, as `onp.detect.anomaly` has it."""
    return (count - 1) // 2
