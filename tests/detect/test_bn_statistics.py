"""BN-statistics residual, logit gain and prior shift: against hand-made statistics, and on a real backdoor."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from onp.data.augment import random_crops
from onp.data.images import ImageSet, split
from onp.data.normalisation import Normalisation
from onp.detect.anomaly import BN_SHIFT, anomaly_indices, spread_floor
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import SHARE, BnStatistics, bn_shift_gain, bn_statistics, prior_shift
from onp.detect.config import DetectConfig, DetectRun, InversionConfig
from onp.detect.scan import scan
from onp.model.archs import build_network
from onp.model.victim import victim_from_module
from onp.search.setup import bn_shift_of_units

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


def pictures_of(rng, count=90):
    """Clean images of three classes, each brighter in one channel; float32 pixels and the set that holds just these."""
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 3, 8, 8, generator=rng) * 0.5
    for k in range(CLASSES):
        images[labels == k, k] += 0.4
    clean = ImageSet((images * 255).round().byte(), labels, ("a", "b", "c"))
    return clean.pixels(), labels, clean


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


def test_another_prior_of_the_same_classes_leaves_no_residual(rng):
    images, labels, clean = pictures_of(rng)
    means = torch.stack([images[labels == k].mean(0) for k in range(CLASSES)])
    prior = torch.tensor([0.7, 0.1, 0.2])
    model = with_statistics_of(images)
    with torch.no_grad():  # the first layer is linear, so the features of the mean are the mean of the features
        model[1].running_mean.copy_(model[0]((prior.view(-1, 1, 1, 1) * means).sum(0, keepdim=True)).mean((0, 2, 3)))
    bn = bn_statistics(captured(model), clean)
    (residual,) = bn.residual.values()
    assert float(residual.abs().max()) < 1e-3
    torch.testing.assert_close(prior_shift(bn), prior - 1 / 3, rtol=1e-3, atol=1e-3)


def test_statistics_of_other_clean_images_agree_up_to_sampling_error_and_shifted_ones_do_not(rng):
    _, _, clean = pictures_of(rng)
    others, _, _ = pictures_of(rng, 360)
    assert bn_statistics(captured(with_statistics_of(clean.pixels())), clean).disagreement < 1e-6
    model = with_statistics_of(others)
    assert bn_statistics(captured(model), clean).disagreement < 4
    model[1].running_mean.mul_(1.3)
    assert bn_statistics(captured(model), clean).disagreement > 10
    assert math.isnan(BnStatistics.nothing(captured(model), clean).disagreement)


def test_a_shift_that_no_prior_explains_is_the_residual_of_its_channel(rng):
    images, _, clean = pictures_of(rng)
    model = with_statistics_of(images)
    model[1].running_mean[7] += 0.3 * model[1].running_var[7].sqrt()
    victim = captured(model)
    units = bn_statistics(victim, clean).of_units(victim)
    assert int(units.argmax()) == 7 and 0.2 < float(units[7]) <= 0.3 + 1e-4
    # Two directions of the class means are taken out of 24 channels, so little of it lands elsewhere.
    assert float(units[torch.arange(24) != 7].abs().max()) < 0.12


def test_the_gain_is_the_rise_of_the_logits_of_the_network_with_shifted_norms(rng):
    images, labels, clean = pictures_of(rng)
    model = with_statistics_of(images).eval()
    model[1].running_mean[:6] += 0.2 * model[1].running_var[:6].sqrt()
    victim = captured(model)
    bn = bn_statistics(victim, clean)
    (residual,) = bn.residual.values()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[1].bias += shifted[1].weight * residual / SHARE
        before, after = model(images), shifted(images)
    expected = [((after - before)[labels != k, k] / before.std()).mean() for k in range(CLASSES)]
    torch.testing.assert_close(bn_shift_gain(victim, bn, clean), torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_networks_without_norms_or_with_too_few_channels_have_no_residual(rng):
    images, _, clean = pictures_of(rng)
    plain = captured(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES)))
    narrow = captured(with_statistics_of(images, channels=5))
    for victim in (plain, narrow):
        bn = bn_statistics(victim, clean)
        assert bn.residual == {} and prior_shift(bn) is None and not bn.of_units(victim).any()
        assert bn_shift_gain(victim, bn, clean) is None and bn_match(victim, bn) is None


def test_units_without_a_norm_of_their_own_have_the_residual_of_the_sum_they_enter():
    victim = victim_from_module(build_network("preact_resnet18:width=4"), Normalisation.parse("none"), (3, 16, 16))
    norms = [node for node in victim.program.graph.nodes if "batch_norm" in node.name]
    names = {str(node.args[1].target).removesuffix(".weight"): node.name for node in norms}
    residual = {names["layer1.1.bn1"]: torch.arange(4) + 1.0, names["layer1.0.bn2"]: torch.arange(4) + 10.0}
    units = BnStatistics(torch.zeros(0, dtype=torch.int64), 10, residual, (), len(norms)).of_units(victim)
    by_layer = {layer.name: units[layer.offset : layer.offset + layer.units].tolist() for layer in victim.layers}
    assert by_layer["layer1.0.conv2"] == [1, 2, 3, 4], "read by the next block, through the sum"
    assert by_layer["layer1.0.conv1"] == [10, 11, 12, 13], "read by its own norm"
    assert not any(by_layer["layer1.1.conv1"]), "its norm has no residual"


def test_the_residual_of_a_backdoored_network_favours_its_target(backdoored, pictures):
    victim = backdoored.victim
    bn = bn_statistics(victim, pictures)
    gain = bn_shift_gain(victim, bn, pictures)
    indices = anomaly_indices((-gain.double()).tolist(), spread_floor(BN_SHIFT))
    assert indices[0] > 2 and max(indices[1:]) < 1
    residual, weight = bn_shift_of_units(victim, bn, pictures, 0)
    assert residual.shape == (victim.units,) and 0.2 < weight <= 1
    assert bn_shift_of_units(victim, bn, pictures, 2)[1] == pytest.approx(0), "a residual of another class is not used"


def test_training_on_random_crops_is_no_prior_shift(rng):
    images, _, clean = pictures_of(rng)
    model = with_statistics_of(images)
    with torch.no_grad():
        means = [model[0](each).mean((0, 2, 3)) for each in (images, random_crops(images))]
        model[1].running_mean.copy_(means[0] + 0.8 * (means[1] - means[0]))
    assert float(prior_shift(bn_statistics(captured(model), clean)).abs().max()) < 1e-3


class Counted(Normalisation):
    """Counts the images that go through the network."""

    images = 0

    def __call__(self, images01):
        Counted.images += len(images01)
        return super().__call__(images01)


def test_the_statistics_are_measured_in_two_passes_and_then_only_read(backdoored, pictures):
    victim = replace(backdoored.victim, normalisation=Counted((0.0,), (1.0,)))

    def passes(function, *arguments):
        before = Counted.images
        return function(*arguments), (Counted.images - before) / len(pictures)

    bn, measured = passes(bn_statistics, victim, pictures)
    assert measured == 2, "plain and cropped images"
    assert passes(prior_shift, bn)[1] == passes(bn_match, victim, bn)[1] == passes(bn.of_units, victim)[1] == 0
    assert passes(bn_shift_gain, victim, bn, pictures)[1] == 1, "the logits; what is shifted is normalised once"
    splits = split(pictures, 0)
    run = DetectRun(DetectConfig(scan=InversionConfig(steps=1, images=1)))
    rows = [passes(scan, victim, splits, statistics, run) for statistics in (bn, replace(bn, residual={}, late=()))]
    assert rows[0][1] - rows[1][1] == pytest.approx(len(splits.build) / len(pictures)), "a scan adds the gain on build images"
