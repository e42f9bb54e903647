"""Pruned units as the weights tell them: those that a mask made zero in every tensor, and no others."""

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.pruned import pruned_units
from onp.model.victim import victim_from_module


class Net(nn.Module):
    """Units of a conv with bias and norm, of a conv with neither, and of a linear layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 7, 3, bias=False)
        self.hidden, self.fc = nn.Linear(7, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


def victim_of(net):
    return victim_from_module(net, Normalisation.parse("half"), (3, 10, 10), 4)


@pytest.fixture(scope="module")
def victim():
    return victim_of(Net())


def test_the_units_of_a_mask_are_found_in_the_weights(victim, rng):
    assert pruned_units(victim).pruned_count == 0
    mask = Mask.of(victim, torch.rand(victim.units, generator=rng) < 0.7)
    assert 0 < mask.pruned_count < victim.units
    found = pruned_units(prune(victim, mask))
    assert torch.equal(found.keep, mask.keep) and found.layers == mask.layers


@pytest.mark.parametrize("left", ["first.weight", "first.bias", "norm.weight", "norm.bias"])
def test_a_unit_with_one_weight_left_is_not_pruned(victim, left):
    """A scale that starts at zero, say, or a filter that decayed while its shift did not."""
    net = Net()
    net.load_state_dict(prune(victim, Mask.from_pruned(Mask.of(victim).layers, {"first": [2, 4]})).model.state_dict())
    with torch.no_grad():
        net.state_dict()[left][2] = 1e-6
    assert pruned_units(victim_of(net)).pruned() == {"first": [4]}
