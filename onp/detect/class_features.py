"""What the detectors' log costs say of each class among the classes of its network, whatever the order of the classes.

Every value is a multiple of the spread among the other classes, so that it means the same for costs in any unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onp.detect.anomaly import MAD_SCALE

INDEX, LEAD = "index", "lead"
FEATURES = (INDEX, LEAD)
"""Per detector and class: the anomaly index, and by how many deviations the class lies below the lowest of the others."""

FEWEST = 3  #: classes with a cost; among fewer there is no spread

Array = NDArray[np.float64]


def class_features(values: Sequence[float], floor: float) -> dict[str, Array]:
    """The `FEATURES` of every class for one detector.

    Args:
        values: log cost of each class; nan where the class was not measured.
        floor: deviations among the classes below it count as `floor`, in the unit of the log costs.

    Returns:
        Per feature float64 `[classes]`; nan where the class was not measured, everywhere where fewer than `FEWEST` were.

    Example:
        >>> found = class_features([0.0, 2.0, 2.1, 1.9, 2.0], floor=0.1)
        >>> found["index"].round(1).tolist()
        [20.0, 0.0, -1.0, 1.0, 0.0]
        >>> found["lead"].round(1).tolist()
        [19.0, -20.0, -21.0, -19.0, -20.0]
    """
    costs = np.asarray(values, dtype=np.float64)
    measured = np.flatnonzero(np.isfinite(costs))
    found = {name: np.full(len(costs), np.nan) for name in FEATURES}
    if len(measured) < FEWEST:
        return found
    kept = costs[measured]
    for k, rest in zip(measured, _others(kept), strict=True):
        # The lower middle value of an even number of classes, as `anomaly_index` has it.
        middle = _lower_median(rest)
        spread = max(MAD_SCALE * _lower_median(np.abs(rest - middle)), floor)
        found[INDEX][k] = (middle - costs[k]) / spread
        found[LEAD][k] = (rest.min() - costs[k]) / spread
    return found


def spread(values: Sequence[float]) -> float:
    """The robust standard deviation of the log costs of all classes; nan where fewer than `FEWEST` were measured."""
    costs = np.asarray(values, dtype=np.float64)
    kept = costs[np.isfinite(costs)]
    return MAD_SCALE * _lower_median(np.abs(kept - _lower_median(kept))) if len(kept) >= FEWEST else float("nan")


def _others(values: Array) -> list[Array]:
    """Per value, all but that one."""
    return [np.delete(values, i) for i in range(len(values))]


def _lower_median(values: Array) -> float:
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])
