"""Which classes of a network with many are worth inversion: those that detectors without inversion find most suspicious."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onp.detect.anomaly import DetectionScores, clipped

INVERTED = 7  #: classes, at most, that triggers are inverted for; networks of as many classes have all of theirs inverted
SUSPICIOUS = 4  # of these, the most suspicious; the rest are spread over all ranks, to compare with


def classes_to_invert(scores: DetectionScores, among: Sequence[int]) -> tuple[int, ...]:
    """Choose by rank alone, so that the numbers of the classes do not matter.

    Args:
        scores: of the detectors without inversion.
        among: the classes to choose from.

    Returns:
        The chosen classes in ascending order, `INVERTED` at most.

    Example:
        >>> scores = DetectionScores.of({"latent": [2.0, 2.1, 2.0, 1.9, 2.2, 2.0, 0.1, 2.1, 2.0, 1.8]})
        >>> 6 in classes_to_invert(scores, range(10)), len(classes_to_invert(scores, range(10)))
        (True, 7)
    """
    if len(among) <= INVERTED:
        return tuple(sorted(among))
    ranked = sorted(among, key=lambda k: _anomaly(scores, k), reverse=True)
    rest, references = ranked[SUSPICIOUS:], INVERTED - SUSPICIOUS
    # In the middle of as many equal parts of the other ranks.
    spread = [rest[(2 * part + 1) * len(rest) // (2 * references)] for part in range(references)]
    return tuple(sorted([*ranked[:SUSPICIOUS], *spread]))


def _anomaly(scores: DetectionScores, k: int) -> tuple[float, float]:
    """The clipped anomaly indices summed, none limited: a trigger may show to one detector alone. Then the plain sum."""
    indices = [values[k] for values in scores.anomaly_index.values() if not math.isnan(values[k])]
    return sum(map(clipped, indices)), sum(indices)
