"""Networks that return a dict, a tuple or an object with logits are captured as those that return logits."""

from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_networks import SHAPE, Tiny
from torch import nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.logits_alone import LogitsAlone, as_given
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import victim_from_module

NONE = Normalisation.parse("none")
OUTPUTS = {
    "dict": lambda logits, x: {"hidden": x, "logits": logits},
    "tuple": lambda logits, x: (logits, x),
    "object": lambda logits, x: SimpleNamespace(logits=logits, hidden_states=None),
}


class More(Tiny):
    """Tiny, with something else beside its logits."""

    kind = "dict"

    def forward(self, x):
        return OUTPUTS[self.kind](super().forward(x), x)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_taken_from_what_a_network_returns(kind):
    torch.manual_seed(0)
    network = More().eval()
    network.kind = kind
    plain = Tiny().eval()
    plain.load_state_dict(network.state_dict())
    images = torch.rand(3, *SHAPE)
    victim = victim_from_module(network, NONE, SHAPE)
    assert type(network) is More  # a copy was changed
    assert victim.model.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(victim.logits(images), plain(images))
    torch.testing.assert_close(victim.program(images), plain(images))
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[0] = False
    pruned = prune(victim, Mask.of(victim, keep))
    assert isinstance(pruned.model, LogitsAlone)
    given = as_given(pruned.model)
    assert type(given) is More and type(given(images)) is type(network(images))
    assert next(given.parameters()) is next(pruned.model.parameters())


def test_networks_of_logits_stay_as_they_are():
    victim = victim_from_module(Tiny(), NONE, SHAPE)
    assert type(victim.model) is Tiny and as_given(victim.model) is victim.model


@pytest.mark.parametrize("output", [{"scores": 1}, (), None])
def test_without_logits_it_is_one_sentence(output):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(SHAPE[0], 2, 3)

        def forward(self, x):
            return output

    with pytest.raises(InputError, match="alone, as 'logits' or first of a tuple"):
        victim_from_module(Odd(), NONE, SHAPE)
