"""Which classes of a network with many are worth inversion: those that detectors without inversion find most suspicious."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onp.detect.anomaly import DetectionScores, clipped

REFERENCES = 3  # spread over all ranks, to compare with
MANY = 14  # classes, of more than which more are suspicious


def most_inverted(classes: int) -> int:
    """How many classes triggers are inverted for.

    Example:
        >>> [most_inverted(classes) for classes in (4, 10, 43, 1000)]
        [4, 7, 9, 9]
    """
    return min(classes, _suspicious(classes) + REFERENCES)


def _suspicious(classes: int) -> int:
    return 4 if classes <= MANY else 6


def classes_to_invert(scores: DetectionScores, among: Sequence[int]) -> tuple[int, ...]:
    """Choose by rank alone, so that the numbers of the classes do not matter.

    Args:
        scores: of the detectors without inversion.
        among: the classes to choose from.

    Returns:
        The chosen classes in ascending order, as many as `most_inverted` says.

    Example:
        >>> scores = DetectionScores.of({"latent": [2.0, 2.1, 2.0, 1.9, 2.2, 2.0, 0.1, 2.1, 2.0, 1.8]})
        >>> 6 in classes_to_invert(scores, range(10)), len(classes_to_invert(scores, range(10)))
        (True, 7)
    """
    classes = len(next(iter(scores.log_costs.values())))
    if len(among) <= most_inverted(classes):
        return tuple(sorted(among))
    ranked, suspicious = sorted(among, key=lambda k: _anomaly(scores, k), reverse=True), _suspicious(classes)
    rest = ranked[suspicious:]
    # In the middle of as many equal parts of the other ranks.
    spread = [rest[(2 * part + 1) * len(rest) // (2 * REFERENCES)] for part in range(REFERENCES)]
    return tuple(sorted([*ranked[:suspicious], *spread]))


def _anomaly(scores: DetectionScores, k: int) -> tuple[float, float]:
    """The clipped anomaly indices summed, none limited: a trigger may show to one detector alone. Then the plain sum."""
    indices = [values[k] for values in scores.anomaly_index.values() if not math.isnan(values[k])]
    return sum(map(clipped, indices)), sum(indices)
