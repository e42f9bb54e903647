"""The rule that was used before one was learned: clipped anomaly indices, summed; kept to compare with.

A class whose sum reaches 4 counted as a target. All of its constants were set by hand on a few dozen networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onp.detect.anomaly import BN_SHIFT, LATENT, PRIOR_SHIFT, anomaly_indices, spread_floor

THRESHOLD = 4.0
NOISE_FLOOR = 1.0  # anomaly indices up to here count as 0
DETECTOR_LIMIT = 2.5  # most that one detector adds
DETECTORS = (
    *(LATENT, "augmentation_bias", BN_SHIFT, PRIOR_SHIFT),
    *("patch", "perturbation", "low_frequency", "warp", "pgd"),
)
"""Those that the rule knows."""


def hand_made_scores(log_costs: Mapping[str, Sequence[float]], pruned: bool) -> tuple[float, ...]:
    """The score of every class.

    Args:
        log_costs: per detector, a value for each class; detectors that are not in `DETECTORS` are left out.
        pruned: units are pruned already; then classes that `latent` does not find score 0.
    """
    indices = {name: anomaly_indices(log_costs[name], spread_floor(name)) for name in DETECTORS if name in log_costs}
    prior, agreeing = indices.pop(PRIOR_SHIFT, None), [indices[name] for name in (LATENT, BN_SHIFT) if name in indices]
    if prior is not None and agreeing:
        indices[PRIOR_SHIFT] = tuple(map(min, prior, map(max, *agreeing) if len(agreeing) > 1 else agreeing[0]))
    classes = range(len(next(iter(log_costs.values()))))
    scores = tuple(sum(_counted(values[k]) for values in indices.values()) for k in classes)
    if not pruned or LATENT not in indices:
        return scores
    return tuple(score if index > NOISE_FLOOR else 0.0 for score, index in zip(scores, indices[LATENT], strict=True))


def _counted(index: float) -> float:
    return min(max(index - NOISE_FLOOR, 0.0), DETECTOR_LIMIT) if index == index else 0.0
