"""What batch norms remember of training images: against hand-made statistics, and on a real backdoor."""

import copy

import pytest
import torch
from torch import nn

from onp.data.images import ImageSet, Normalisation
from onp.detect.anomaly import LEAST_SPREAD_OF, MEMORY, MIX, Scan, evidence
from onp.detect.bn_statistics import SHARE, Memory, class_mix, cropped, pulls, remember
from onp.model.archs import build_network
from onp.model.victim import victim_from_module
from onp.search.setup import remembered

CLASSES = 3


def small(channels: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


def pictures(rng, count=90):
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 3, 8, 8, generator=rng) * 0.5
    for k in range(CLASSES):
        images[labels == k, k] += 0.4
    return images, labels


def with_statistics_of(images, channels=24) -> nn.Sequential:
    """A network whose norm holds exactly the statistics of `images`."""
    model = small(channels)
    with torch.no_grad():
        out = model[0](images)
        model[1].running_mean.copy_(out.mean((0, 2, 3)))
        model[1].running_var.copy_(out.var((0, 2, 3), correction=0))
        model[1].weight.uniform_(0.5, 1.5)
    return model


def captured(model):
    return victim_from_module(model, Normalisation.parse("none"), (3, 8, 8))


def test_another_mix_of_the_same_classes_is_not_remembered(rng):
    images, labels = pictures(rng)
    means = torch.stack([images[labels == k].mean(0) for k in range(CLASSES)])
    mixed = (torch.tensor([0.7, 0.1, 0.2]).view(-1, 1, 1, 1) * means).sum(0, keepdim=True)
    model = with_statistics_of(images)
    with torch.no_grad():  # the first layer is linear, so the mean of a mix is the mix of the means
        model[1].running_mean.copy_(model[0](mixed).mean((0, 2, 3)))
    victim = captured(model)
    memory = remember(victim, images, labels)
    (shift,) = memory.shifts.values()
    assert float(shift.abs().max()) < 1e-3
    mix = class_mix(victim, images, labels, memory)
    torch.testing.assert_close(mix, torch.tensor([0.7, 0.1, 0.2]) - 1 / 3, rtol=1e-3, atol=1e-3)


def test_a_shift_that_no_mix_explains_is_remembered_where_it_lies(rng):
    images, labels = pictures(rng)
    model = with_statistics_of(images)
    model[1].running_mean[7] += 0.3 * model[1].running_var[7].sqrt()
    victim = captured(model)
    memory = remember(victim, images, labels)
    units = memory.of_units(victim)
    assert int(units.argmax()) == 7 and 0.2 < float(units[7]) <= 0.3 + 1e-4
    # Two directions of the class means are taken out of 24 channels, so little of it lands elsewhere.
    assert float(units[torch.arange(24) != 7].abs().max()) < 0.12


def test_pull_is_the_rise_of_the_logits_of_the_network_with_moved_norms(rng):
    images, labels = pictures(rng)
    model = with_statistics_of(images).eval()
    model[1].running_mean[:6] += 0.2 * model[1].running_var[:6].sqrt()
    victim = captured(model)
    memory = remember(victim, images, labels)
    (shift,) = memory.shifts.values()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[1].bias += moved[1].weight * shift / SHARE
        before, after = model(images), moved(images)
    expected = [((after - before)[labels != k, k] / before.std()).mean() for k in range(CLASSES)]
    found = pulls(victim, memory, images, labels)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_networks_that_remember_nothing(rng):
    images, labels = pictures(rng)
    plain = captured(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES)))
    narrow = captured(with_statistics_of(images, channels=5))
    for victim in (plain, narrow):
        memory = remember(victim, images, labels)
        assert memory.shifts == {} and class_mix(victim, images, labels, memory) is None and not memory.of_units(victim).any()
        assert pulls(victim, memory, images, labels) is None


def test_units_without_a_norm_of_their_own_have_that_of_the_sum_they_enter():
    victim = victim_from_module(build_network("preact_resnet18:width=4"), Normalisation.parse("none"), (3, 16, 16))
    norms = [node for node in victim.program.graph.nodes if "batch_norm" in node.name]
    names = {str(node.args[1].target).removesuffix(".weight"): node.name for node in norms}
    shifts = {names["layer1.1.bn1"]: torch.arange(4) + 1.0, names["layer1.0.bn2"]: torch.arange(4) + 10.0}
    units = Memory(shifts).of_units(victim)
    by_layer = {layer.name: units[layer.offset : layer.offset + layer.units].tolist() for layer in victim.layers}
    assert by_layer["layer1.0.conv2"] == [1, 2, 3, 4], "read by the next block, through the sum"
    assert by_layer["layer1.0.conv1"] == [10, 11, 12, 13], "read by its own norm"
    assert not any(by_layer["layer1.1.conv1"]), "nothing is known of its norm"


def test_a_backdoored_network_remembers_its_target(backdoored):
    victim, batch = backdoored.victim, backdoored.score
    pull = pulls(victim, remember(victim, batch.images, batch.labels), batch.images, batch.labels)
    said = [evidence((-pull.double()).tolist(), k, least=LEAST_SPREAD_OF[MEMORY]) for k in range(4)]
    assert said[0] > 2 and max(said[1:]) < 1
    images = ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))
    shifts, belief = remembered(victim, (images,), 0)
    assert shifts.shape == (victim.units,) and 0.2 < belief <= 1
    assert remembered(victim, (images,), 2)[1] == pytest.approx(0), "memory of another class is no reason to prune"


def test_training_on_crops_is_no_mix(rng):
    images, labels = pictures(rng)
    model = with_statistics_of(images)
    with torch.no_grad():
        means = [model[0](each).mean((0, 2, 3)) for each in (images, cropped(images))]
        model[1].running_mean.copy_(means[0] + 0.8 * (means[1] - means[0]))
    victim = captured(model)
    assert float(class_mix(victim, images, labels, remember(victim, images, labels)).abs().max()) < 1e-3


def test_a_mix_is_heard_as_far_as_what_else_lies_inside_agrees():
    quiet, loud, louder = (0.0,) * 10, (-0.4, *(0.1 * k for k in range(9))), (-4.0, *(0.1 * k for k in range(9)))
    alone = Scan({"latent": loud}).suspicion[0]
    assert alone == pytest.approx(1.7, abs=0.01)
    assert Scan({"latent": loud, "drift": quiet, MIX: louder}).suspicion[0] == pytest.approx(2 * alone)
    without = Scan({"latent": quiet, "drift": quiet, "warp": loud}).suspicion
    assert Scan({"latent": quiet, "drift": quiet, "warp": loud, MIX: louder}).suspicion == without
    assert max(Scan({"drift": quiet, "warp": loud, MIX: louder}).suspicion) == max(without), "nor where nothing could agree"
