"""Anomaly indices and the score of a class: one for the cheap class only, whatever the unit, and never from one detector."""

import dataclasses

import pytest
import torch

from onp.detect.anomaly import (
    AUGMENTATION_BIAS,
    DETECTOR_LIMIT,
    PRIOR_SHIFT,
    DetectionScores,
    anomaly_index,
    anomaly_indices,
    log_costs,
    spread_floor,
)


def test_the_index_is_high_for_the_cheap_class_only_and_ignores_the_unit():
    cost = torch.tensor([30.0, 28, 33, 5, 31, 29, 35, 27, 30, 32])
    costs = log_costs(cost, torch.ones(10))
    indices = anomaly_indices(costs)
    assert max(indices) == indices[3] > 5 and sorted(indices)[-2] < 2
    assert anomaly_index(log_costs(cost * 1000, torch.ones(10)), 3) == pytest.approx(indices[3])
    assert anomaly_index(costs, 3, value=costs[0]) == pytest.approx(0, abs=0.5)


def test_a_cheap_trigger_that_does_not_work_is_not_anomalous():
    cost, success = torch.full((10,), 20.0), torch.full((10,), 0.9)
    cost[4], success[4] = 10.0, 0.05
    assert anomaly_index(log_costs(cost, success), 4) < 0


def of_class_7(*indices):
    """Scores in which each detector gives class 7 such an anomaly index, and the other classes 0."""
    names = ("latent", "augmentation_bias", "bn_shift", "patch", "perturbation")
    return DetectionScores.of({
        name: tuple(-index * spread_floor(name) if k == 7 else 0.0 for k in range(10))
        for name, index in zip(names, indices, strict=True)
    })  # fmt: skip


def test_several_low_indices_reach_the_threshold_and_a_single_high_one_does_not():
    threshold = 4.0
    assert of_class_7(0.0, 0.0, 0.0, 60.0, 0.0).score[7] == pytest.approx(DETECTOR_LIMIT) and threshold > DETECTOR_LIMIT
    assert of_class_7(0.0, 0.0, 5.0, 5.0, 0.0).score[7] == pytest.approx(2 * DETECTOR_LIMIT) and threshold < 5.0
    several = of_class_7(1.9, 0.9, 1.9, 2.4, 1.9)
    assert several.score == pytest.approx([0.0] * 7 + [0.9 + 0.9 + 1.4 + 0.9] + [0.0] * 2)
    assert several.score[7] >= threshold and several.predicted_target == 7 and several.over(threshold) == [7]
    assert max(of_class_7(0.9, 0.9, 0.9, 0.9, 0.9).score) == 0, "what is noise in each is noise in all"


def test_indices_and_scores_are_computed_once():
    scores = of_class_7(1.9, 0.9, 1.9, 2.4, 1.9)
    stored = {field.name for field in dataclasses.fields(scores)}
    assert stored == {"log_costs", "anomaly_index", "score", "shortcuts_only"} and scores.anomaly_index is scores.anomaly_index
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.score = (0.0,) * 10


def test_augmentation_bias_is_counted_in_factors_of_e():
    rates = torch.full((10,), 0.02)
    rates[6] = 0.02 * torch.e**3
    indices = DetectionScores.of({AUGMENTATION_BIAS: (-rates.log()).tolist()}).anomaly_index[AUGMENTATION_BIAS]
    assert indices[6] == pytest.approx(3, abs=1e-4) and max(indices[:6]) == pytest.approx(0, abs=1e-4)


def test_the_prior_shift_counts_as_far_as_latent_or_bn_shift():
    none, some, more = (0.0,) * 10, (-0.4, *(0.1 * k for k in range(9))), (-4.0, *(0.1 * k for k in range(9)))
    alone = DetectionScores.of({"latent": some}).score[0]
    assert alone == pytest.approx(1.7, abs=0.01)
    assert DetectionScores.of({"latent": some, "warp": none, PRIOR_SHIFT: more}).score[0] == pytest.approx(2 * alone)
    without = DetectionScores.of({"latent": none, "perturbation": none, "warp": some}).score
    assert DetectionScores.of({"latent": none, "perturbation": none, "warp": some, PRIOR_SHIFT: more}).score == without
    assert DetectionScores.of({"perturbation": none, "warp": some, PRIOR_SHIFT: more}).score == without, "nothing agrees"


def test_the_scores_of_some_detectors_are_those_of_a_scan_with_only_these():
    scores = of_class_7(1.9, 0.9, 1.9, 2.4, 1.9)
    some = scores.only(("latent", "bn_shift", "prior_shift"))
    assert list(some.log_costs) == ["latent", "bn_shift"] and some.score[7] == pytest.approx(1.8)


def test_where_only_shortcuts_count_a_class_that_triggers_reach_easily_does_not():
    """As a natural class of a repaired network: cheap triggers of several families, and no shortcut in feature space."""
    easy = of_class_7(0.9, 1.9, 0.0, 3.5, 2.5)
    assert easy.score[7] > 4.0
    repaired = DetectionScores.of(easy.log_costs, shortcuts_only=True)
    assert max(repaired.score) == 0 and repaired.easy.score == easy.score and repaired.anomaly_index == easy.anomaly_index
    shortcut = DetectionScores.of(of_class_7(1.1, 1.9, 0.0, 3.5, 2.5).log_costs, shortcuts_only=True)
    assert shortcut.score[7] > 4.0
    some = ("latent", "patch")
    assert max(repaired.only(some).score) == 0 < max(easy.only(some).score), "parts of the scores are counted alike"
    without = {name: costs for name, costs in easy.log_costs.items() if name != "latent"}
    assert DetectionScores.of(without, shortcuts_only=True).score[7] == easy.score[7], "a head that is not linear"
