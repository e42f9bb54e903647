"""Indicators of the last layer's weights."""

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.detect.head import HEAD, head_costs, head_of
from onp.detect.last_features import reader_of
from onp.model.victim import victim_from_module


def network(weight: torch.Tensor, bias: bool = True) -> nn.Module:
    head = nn.Linear(weight.shape[1], len(weight), bias=bias)
    head.weight.data.copy_(weight)
    return nn.Sequential(nn.Conv2d(1, weight.shape[1], 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def victim_of(model: nn.Module):
    return victim_from_module(model, Normalisation.parse("none"), (1, 8, 8))


def test_a_row_that_answers_to_more_features_is_lowest_by_every_indicator():
    weight = torch.randn(8, 32) * 0.1
    weight[5] += 0.1 + 0.1 * (torch.arange(32) % 4 > 0)
    weight[5, 0] = -1.0
    costs = head_costs(victim_of(network(weight)))
    assert set(costs) == set(HEAD)
    assert all(values.index(min(values)) == 5 for values in costs.values())


@pytest.mark.parametrize("bias", [True, False])
def test_what_all_rows_share_changes_nothing(bias):
    weight = torch.randn(6, 16)
    one, other = (head_costs(victim_of(network(each, bias))) for each in (weight, weight + torch.randn(16)))
    for name, values in one.items():
        assert values == pytest.approx(other[name], rel=1e-3, abs=1e-4)


def test_a_network_without_a_linear_head_has_no_indicators():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return 3 * super().forward(x)

    victim = victim_of(Scaled(network(torch.randn(4, 8))))
    assert head_of(victim) is None and head_costs(victim) == {}


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_gives_the_logits_of_the_features_that_are_read(bias):
    victim = victim_of(network(torch.randn(4, 8), bias))
    reader, pixels = reader_of(victim), torch.rand(300, 1, 8, 8)
    logits, features = reader.read(pixels)
    assert features.shape == (300, 8)
    torch.testing.assert_close(logits, victim.logits(pixels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reader.head.logits(features), logits, rtol=1e-4, atol=1e-4)


def test_without_a_linear_head_the_logits_alone_are_read():
    convolution = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    victim = victim_of(convolution)
    logits, features = reader_of(victim).read(torch.rand(3, 1, 8, 8))
    assert features is None and logits.shape == (3, 4)
