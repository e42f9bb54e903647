"""Networks in fused steps: the logits, what is asked for on the way, and the gradients, against the captured graph."""

import pytest
import torch
from helpers import evaluator_cases
from torch import nn

from onp.data.normalisation import Normalisation
from onp.detect.bn_statistics import argument, batch_norms
from onp.engine.differentiable import fitting_logits, forward_of, fused_forward, halves
from onp.model.interpret import run_graph
from onp.model.victim import victim_from_module


@pytest.mark.parametrize("name", evaluator_cases.NETWORKS)
@pytest.mark.parametrize("count", [1, 5])
def test_fused_logits_and_their_gradients_are_those_of_the_network(name, count, rng):
    victim = evaluator_cases.lively_victim(evaluator_cases.NETWORKS[name])
    fused, errors = fitting_logits(victim), []
    for _ in range(3):
        images = torch.rand(count, *victim.input_shape, generator=rng).requires_grad_()
        weights = torch.randn(victim.classes, generator=rng)
        for _ in range(2):  # the second time with the same tensors: nothing may have been overwritten
            found, expected = fused(images), victim.logits(images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # logits of about 2
            gradient, reference = (torch.autograd.grad((logits @ weights).sum(), images)[0] for logits in (found, expected))
            assert float(reference.norm()) > 0
            errors.append(float((gradient - reference).norm() / reference.norm()))
    # Rounding decides an activation that lies at the kink of a ReLU now and then, of some images.
    assert min(errors[::2]) <= 0.01 and min(errors[1::2]) <= 0.01


@pytest.mark.parametrize("name", evaluator_cases.NETWORKS)
def test_values_on_the_way_are_those_of_the_graph(name, rng):
    victim = evaluator_cases.lively_victim(evaluator_cases.NETWORKS[name])
    images = torch.rand(3, *victim.input_shape, generator=rng)
    wanted = [argument(norm, 0).name for norm in batch_norms(victim.program)]
    logits, found = forward_of(victim, wanted)(images)
    expected, values = run_graph(victim.program, victim.normalisation(images), lambda _, value: value, wanted)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert found.keys() == values.keys()
    for each in wanted:
        torch.testing.assert_close(found[each], values[each], rtol=1e-3, atol=1e-3)


def test_the_image_itself_can_be_asked_for(preact):
    (image,) = (node.name for node in preact.program.graph.nodes if node.op == "placeholder")
    pixels = torch.rand(2, *preact.input_shape)
    assert torch.equal(fused_forward(preact, [image])(pixels)[1][image], preact.normalisation(pixels))


@pytest.mark.parametrize("name", evaluator_cases.NETWORKS)
def test_the_two_halves_of_a_network_are_the_network(name, rng):
    victim = evaluator_cases.lively_victim(evaluator_cases.NETWORKS[name])
    images = torch.rand(3, *victim.input_shape, generator=rng)
    for depth in (0.15, 0.8):
        cut = halves(victim, depth)
        if cut is None:  # a shortcut leads round every layer
            continue
        features = cut.first(images)
        assert tuple(features.shape[1:]) == cut.shape and 0 < cut.depth < 1
        torch.testing.assert_close(cut.second(features), victim.logits(images), rtol=1e-3, atol=1e-3)


def test_a_deeper_cut_holds_more_layers_and_a_network_of_two_has_none(preact):
    assert halves(preact, 0.1).depth < halves(preact, 0.7).depth
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert halves(victim_from_module(network, Normalisation.parse("none"), (3, 8, 8)), 0.5) is None


def test_the_values_of_a_network_of_one_channel_are_channels_last():
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 4))
    victim = victim_from_module(network, Normalisation.parse("half"), (1, 6, 8))
    (name,) = (node.name for node in victim.program.graph.nodes if node.op == "call_function" and "pool" in node.name)
    _, found = forward_of(victim, (name,))(torch.rand(3, 1, 6, 8, requires_grad=True))
    assert found[name].shape == (3, 16, 3, 4) and found[name].is_contiguous(memory_format=torch.channels_last)
