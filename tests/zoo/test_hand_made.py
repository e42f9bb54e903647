"""The rule that the learned verdict is compared with."""

import math

import pytest

from onp.detect.anomaly import PRIOR_SHIFT, spread_floor
from onp.zoo.learn.hand_made import DETECTOR_LIMIT, THRESHOLD, hand_made_scores

NONE, SOME = (0.0,) * 10, (-0.4, *(0.1 * k for k in range(9)))


def of_class_7(**indices):
    """Costs by which each detector gives class 7 such an anomaly index, and the other classes 0."""
    return {name: tuple(-index * spread_floor(name) if k == 7 else 0.0 for k in range(10)) for name, index in indices.items()}


def test_several_low_indices_reach_the_threshold_and_a_single_high_one_does_not():
    assert (
        hand_made_scores(of_class_7(patch=60.0, latent=0.0), False)[7] == pytest.approx(DETECTOR_LIMIT) and DETECTOR_LIMIT < 4
    )
    several = hand_made_scores(of_class_7(latent=1.9, bn_shift=1.9, patch=2.4, perturbation=1.9), False)
    assert several == pytest.approx([0.0] * 7 + [4.1] + [0.0] * 2) and several[7] >= THRESHOLD


def test_other_detectors_and_classes_that_were_not_measured_count_nothing():
    assert hand_made_scores({"latent": NONE, "head": (-9.0, *NONE[1:]), "patch": (math.nan, *SOME[1:])}, False)[0] == 0


def test_the_prior_shift_counts_as_far_as_latent_or_bn_shift():
    alone, more = hand_made_scores({"latent": SOME}, False)[0], (-4.0, *SOME[1:])
    assert hand_made_scores({"latent": SOME, PRIOR_SHIFT: more}, False)[0] == pytest.approx(2 * alone)
    assert hand_made_scores({"patch": NONE, PRIOR_SHIFT: more}, False)[0] == 0


def test_of_a_pruned_network_only_classes_that_latent_finds_count():
    costs = of_class_7(latent=0.9, patch=4.0, perturbation=4.0)
    assert hand_made_scores(costs, False)[7] > THRESHOLD and max(hand_made_scores(costs, True)) == 0
