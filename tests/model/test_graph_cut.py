"""A network in two parts computes what it computes in one, and knows which weights are read behind the cut alone."""

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.model.archs import build_network
from onp.model.graph_cut import GraphCut
from onp.model.victim import victim_from_module

ARCHS = (
    "vgg11_bn:width=8,classes=5",
    "vgg11_gn:width=8,classes=5",
    "preact_resnet18:width=8,classes=5",
    "mobilenet_v2:width=8,classes=5",
    "convnext:width=8,classes=5",
    "vit:width=48,classes=5",
)


def victim_of(network, shape):
    return victim_from_module(network, Normalisation.parse("none"), shape)


@pytest.mark.parametrize("arch", ARCHS)
def test_both_parts_together_are_the_network(arch):
    victim = victim_of(build_network(arch), (3, 32, 32))
    x = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    half, nothing = GraphCut.of(victim.program, 0.5), GraphCut.of(victim.program, 0)
    assert 0.3 < half.depth <= 0.5 and nothing.node.op == "placeholder" and nothing.depth == 0
    expected = victim.model(x)
    for cut in (half, nothing):
        features = cut.features(x)
        torch.testing.assert_close(cut.logits(features), expected)
        torch.testing.assert_close(cut.logits(features[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    own = dict(victim.model.named_parameters())
    late = half.late_parameters()
    assert 0 < len(late) < len(own) and set(nothing.late_parameters()) == set(own)
    assert all(tensor.data_ptr() == own[key].data_ptr() for key, tensor in late.items())


@pytest.mark.parametrize("arch", ("preact_resnet18:width=8,classes=5", "vit:width=48,classes=5"))
def test_replaced_parameters_are_used_and_have_gradients(arch):
    victim = victim_of(build_network(arch), (3, 32, 32))
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    cut = GraphCut.of(victim.program, 0.5)
    replaced = {key: (tensor * 1.5).requires_grad_() for key, tensor in cut.late_parameters().items()}
    found = cut.logits(cut.features(x), replaced)
    found.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in replaced.values())
    victim.model.load_state_dict({key: tensor.detach() for key, tensor in replaced.items()}, strict=False)
    torch.testing.assert_close(found.detach(), victim.model(x))


class Shared(nn.Module):
    """A conv that is used early and late, a skip over everything, and two names for the weights of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)
        self.other = nn.ModuleList([self.head])

    def forward(self, x):
        early = torch.relu(self.first(x))
        return self.head(self.first(torch.relu(self.again(early))).mean((2, 3)))


def test_parameters_that_are_read_before_the_cut_too_are_not_late():
    victim = victim_of(Shared(), (3, 8, 8))
    cut = GraphCut.of(victim.program, 0.25)
    assert cut.depth == 0.25
    late = cut.late_parameters()
    own = victim.model
    expected = {tensor.data_ptr() for module in (own.again, own.head) for tensor in module.parameters()}
    assert {tensor.data_ptr() for tensor in late.values()} == expected and len(late) == 4
    replaced = {key: tensor + 1 for key, tensor in late.items()}
    x = torch.rand(2, 3, 8, 8)
    found = cut.logits(cut.features(x), replaced)
    victim.model.load_state_dict(replaced, strict=False)
    torch.testing.assert_close(found, victim.model(x))


class Skip(nn.Module):
    """The image is read until the end, so that only the image itself can be cut at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        return self.head((self.second(torch.relu(self.first(x))) + x).mean((2, 3)))


def test_a_value_beside_the_path_is_no_cut():
    assert GraphCut.of(victim_of(Skip(), (3, 8, 8)).program, 0.6).node.op == "placeholder"
