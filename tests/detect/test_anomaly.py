"""Anomaly indices: high for the cheap class only, whatever the unit."""

import dataclasses
import math

import pytest
import torch

from onp.detect.anomaly import (
    AUGMENTATION_BIAS,
    DetectionScores,
    anomaly_index,
    anomaly_indices,
    clipped,
    log_costs,
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


def test_indices_are_computed_once():
    scores = DetectionScores.of({"patch": (0.0, 0.1, -3.0, 0.2), "latent": (0.0, 0.1, -3.0, 0.2)})
    assert {field.name for field in dataclasses.fields(scores)} == {"log_costs", "anomaly_index"}
    assert scores.anomaly_index is scores.anomaly_index
    assert scores.anomaly_index["latent"][2] > scores.anomaly_index["patch"][2] > 5, "each has a floor of its own"
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.log_costs = {}


def test_augmentation_bias_is_counted_in_factors_of_e():
    rates = torch.full((10,), 0.02)
    rates[6] = 0.02 * torch.e**3
    indices = DetectionScores.of({AUGMENTATION_BIAS: (-rates.log()).tolist()}).anomaly_index[AUGMENTATION_BIAS]
    assert indices[6] == pytest.approx(3, abs=1e-4) and max(indices[:6]) == pytest.approx(0, abs=1e-4)


def test_classes_that_were_not_measured_are_left_out_and_have_no_index():
    costs = (3.0, 3.1, math.nan, 2.9, 0.5, math.nan, 3.2)
    indices, without = anomaly_indices(costs), anomaly_indices([cost for cost in costs if not math.isnan(cost)])
    assert [index for index in indices if not math.isnan(index)] == list(without)
    assert [k for k, index in enumerate(indices) if math.isnan(index)] == [2, 5] and clipped(indices[2]) == 0
    for too_few in ((math.nan, math.nan), (1.0, math.nan)):
        assert all(map(math.isnan, anomaly_indices(too_few)))
