"""A verdict that is not learned, and probabilities that nobody computed.

So that tests of what follows from probabilities do not depend on what was learned last.
"""

import math

from onp.detect.anomaly import AUGMENTATION_BIAS, BN_SHIFT, LATENT, PRIOR_SHIFT, DetectionScores, spread_floor
from onp.detect.bank import FAMILY_NAMES
from onp.detect.probability import GROUPS, DetectorTerm, GroupModel, LearnedVerdict, TargetProbabilities
from onp.detect.targets import Pass

DETECTORS = (LATENT, AUGMENTATION_BIAS, BN_SHIFT, PRIOR_SHIFT, *FAMILY_NAMES)
PAIR = 1.0


def made_verdict(bias=-4.0):
    """Anomaly indices beyond 1 add to the log odds, that of the latent shift most; thresholds of 80 and 20 %.

    Args:
        bias: the log odds of a class in which no detector is anomalous.
    """
    some, much = (DetectorTerm({"index": ((1.0, 0.0), (2.0, most))}, missing=0.0) for most in (0.5, 6.0))
    group = GroupModel(bias, 0.0, dict.fromkeys(DETECTORS, some) | {LATENT: much})
    floors = {name: spread_floor(name) for name in DETECTORS}
    return LearnedVerdict(floors, dict.fromkeys(GROUPS, group), PAIR, 0.8, 0.2, "test")


def probabilities(*per_class, **evidence):
    """Of a network whose classes have these probabilities; `evidence`: what detectors add to the log odds of every class."""
    none = math.prod(1 - each for each in per_class)
    within = [min(max(each, 1e-6), 1 - 1e-6) for each in per_class]
    log_odds = tuple(math.log(each / (1 - each)) for each in within)
    return TargetProbabilities(per_class, 1 - none, (evidence,) * len(per_class), log_odds)


def made_pass(*per_class, scores=None, **evidence):
    """A pass of detection with these probabilities; `scores`: what the detectors measured."""
    return Pass(DetectionScores({}, {}) if scores is None else scores, probabilities(*per_class, **evidence))
