"""Probabilities in words: of a backdoor, of each class as its target, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onp.data.images import ImageSet
from onp.detect.targets import Detection

STRONGEST = 4  # detectors that are named
NEVER_SURE = 0.001  # nearer to 0 or 1 no probability is known


def in_words(probability: float) -> str:
    """A probability in per cent.

    Example:
        >>> in_words(0.9873), in_words(0.7), in_words(0.99997), in_words(0.0), in_words(float("nan"))
        ('98.7 %', '70 %', 'above 99.9 %', 'below 0.1 %', 'unknown')
    """
    if probability > 1 - NEVER_SURE:
        return f"above {100 * (1 - NEVER_SURE):g} %"
    if probability < NEVER_SURE:
        return f"below {100 * NEVER_SURE:g} %"
    return f"{100 * probability:.1f}".removesuffix(".0") + " %" if probability == probability else "unknown"


def strongest(evidence: Mapping[str, float], count: int = STRONGEST) -> list[tuple[str, float]]:
    """The detectors that change the log odds of a class most, with what they add; those that add nothing are left out.

    Args:
        evidence: by detector, for one class.
        count: how many at most.
    """
    return sorted(((name, value) for name, value in evidence.items() if value), key=lambda pair: -abs(pair[1]))[:count]


def rests_on(evidence: Mapping[str, float], count: int = STRONGEST) -> str:
    """The same in words.

    Example:
        >>> rests_on({"patch": 2.13, "warp": 0.0, "latent": -0.4})
        'patch +2.1, latent -0.4'
    """
    return ", ".join(f"{name} {value:+.1f}" for name, value in strongest(evidence, count)) or "no detector"


def by_detector(evidence: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """What each detector adds to the log odds, per class; 0 where it says nothing of a class.

    Args:
        evidence: by class, the additions of each detector.
    """
    names = dict.fromkeys(name for of_class in evidence for name in of_class)
    return {name: tuple(of_class.get(name, 0.0) for of_class in evidence) for name in names}


def found(detection: Detection, classes: Sequence[int], images: ImageSet) -> str:
    """Which classes are targets and how probable that is, as a clause.

    Args:
        detection: that found a backdoor.
        classes: its targets.
        images: whose class names to use.
    """
    probabilities = detection.probabilities
    if len(classes) > 1:
        each = ", ".join(f"{images.name(k)} ({in_words(probabilities.per_class[k])})" for k in classes)
        return f"Several classes were detected as targets of backdoors, with the probability of each: {each}"
    (target,) = classes
    return (
        f"Class {images.name(target)} was detected as the target of a backdoor (probability "
        f"{in_words(probabilities.per_class[target])}, from {rests_on(probabilities.evidence[target])} in log odds)"
    )


def not_found(detection: Detection, images: ImageSet) -> str:
    """How probable a backdoor is that is no finding, and which class would be its target, in a sentence.

    Args:
        detection: that found no backdoor, or is inconclusive.
        images: whose class names to use.
    """
    probabilities, verdict, target = detection.probabilities, detection.verdict, detection.predicted_target
    low, high = in_words(verdict.none_below), in_words(verdict.backdoor_from)
    if probabilities.backdoor < verdict.none_below:
        compared = f"below {low}"
    else:
        compared = f"between {low} and {high}, where neither answer is safe"
    return (
        f"The probability of a backdoor is {in_words(probabilities.backdoor)}, {compared}; the most probable target is class "
        f"{images.name(target)} ({in_words(probabilities.per_class[target])})."
    )
