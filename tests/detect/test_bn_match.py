"""BN-shift match: against statistics made by hand, and on a real backdoor."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from onp.data.images import ImageSet, Splits
from onp.data.normalisation import Normalisation
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import FALLBACK_FAMILIES, FAMILY_NAMES, TargetClass, invert_triggers
from onp.detect.bn_match import BnMatch, bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectConfig, DetectRun, InversionConfig
from onp.detect.inversion import InversionTask, invert
from onp.detect.trigger_families import FAMILIES
from onp.model.victim import victim_from_module
from onp.resume import Store

CLASSES, CHANNELS, SIZE = 3, 24, 8
PERTURBATION = next(family for family in FAMILIES if family.name == "perturbation")
CONFIG = DetectConfig()
NO_ANOMALY = DetectionScores.of({name: (0.0,) * CLASSES for name in FAMILY_NAMES})


def network() -> nn.Sequential:
    """Class 2 for what changes along rows, channel 0, and for what changes along the columns, channel 1, which counts more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(CHANNELS),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(CHANNELS, CLASSES),
        ).eval()
    across, down = torch.zeros(3, 3), torch.zeros(3, 3)
    across[1] = down[:, 1] = torch.tensor([-1.0, 2.0, -1.0])
    with torch.no_grad():
        model[0].weight[0, 0], model[0].weight[1, 0] = 2 * across, 3 * down
        model[0].bias[:2], model[0].bias[2:] = 0, 1
        model[5].weight.mul_(0.1)
        model[5].weight[2, :2] = torch.tensor([6.0, 9.0])
    return model


def pictures_of(rng, count=600):
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 1, SIZE, SIZE, generator=rng) * 0.1 + 0.1 * labels.view(-1, 1, 1, 1)
    return ImageSet((images * 255).round().byte(), labels, ("a", "b", "c"))


def striped(images, columns: bool):
    """`images` with every second row, or column, brighter."""
    out = images.clone()
    (out[..., ::2] if columns else out[..., ::2, :]).add_(0.4)
    return out


def trained_on(images) -> nn.Sequential:
    """`network`, whose norm holds the statistics of `images`."""
    model = network()
    with torch.no_grad():
        out = model[:2](images)
        model[2].running_mean.copy_(out.mean((0, 2, 3)))
        model[2].running_var.copy_(out.var((0, 2, 3), correction=0))
    return model


@pytest.fixture
def planted(rng):
    """A network of whose training images one in ten had every second row brighter, and clean images."""
    training = pictures_of(rng, 6000).pixels()
    training[::10] = striped(training[::10], columns=False)
    return captured(trained_on(training)), pictures_of(rng, 2400)  # with 600 one draw in 200 is of low reliability


def captured(model):
    return victim_from_module(model, Normalisation.parse("none"), (1, SIZE, SIZE))


def matched(victim, clean):
    return bn_match(victim, bn_statistics(victim, clean))


def test_the_trigger_of_the_training_images_matches_and_another_does_not(planted):
    victim, clean = planted
    match, images = matched(victim, clean), clean.pixels()
    assert match.reliability > 0.5
    own, other = (match.of_images(images, striped(images, columns)) for columns in (False, True))
    assert own > 0.9 and own > other + 0.1


def test_the_residual_of_clean_training_images_is_less_reliable(planted, rng):
    victim, clean = planted
    match = matched(captured(trained_on(pictures_of(rng, 6000).pixels())), clean)
    assert match is None or match.reliability < matched(victim, clean).reliability


def test_match_is_the_cosine_outside_what_classes_explain(planted):
    victim, clean = planted
    match, images = matched(victim, clean), clean.pixels()
    (norm,) = match.norms
    explained = norm.explained[:, :1].T
    torch.testing.assert_close(match.match([3 * norm.direction[None] + 5 * explained]), torch.ones(1))
    torch.testing.assert_close(match.match([-norm.direction[None]]), -torch.ones(1))
    assert float(norm.direction @ norm.explained @ norm.explained.T @ norm.direction) < 1e-6
    logits, features = match.features(images)
    torch.testing.assert_close(logits, victim.logits(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[0], victim.model[:2](images).mean((2, 3)) / victim.model[2].running_var.sqrt())


def test_with_a_match_the_trigger_that_matches_best_is_kept_and_not_the_cheapest(planted, tmp_path):
    victim, clean = planted
    match, images, labels = matched(victim, clean), clean.pixels(), clean.labels
    store = Store(tmp_path)
    store.begin({})
    config, run = InversionConfig(steps=60, images=16, min_confidence=0.97), DetectRun(store=store)
    task = InversionTask([victim.logits], images, labels, (2,))
    cheap = invert(PERTURBATION, task, config, run)
    matching = invert(PERTURBATION, replace(task, match=match), config, run)
    assert bool(cheap.worked.all()) and bool(matching.worked.all())
    others = images[labels != 2]
    cosines = [match.of_images(others, triggers.apply(others, 0)) for triggers in (cheap, matching)]
    assert cosines[1] > 0.9 and cosines[1] > cosines[0] + 0.05
    assert len(list(store.folder.glob("*.safetensors"))) == 2, "a resumed run tells them apart"


def bank_of(victim, clean, match, config=CONFIG):
    """The bank of class 2, for which no family is anomalous; triggers are inverted and validated on all images."""
    splits = Splits(clean, clean, clean)
    return invert_triggers(victim, TargetClass(2, NO_ANOMALY, match), splits, DetectRun(config))


def test_families_weigh_as_their_triggers_match_the_residual(planted):
    victim, clean = planted
    without, matching = (bank_of(victim, clean, match) for match in (None, matched(victim, clean)))
    assert {each.family for each in without.surrogates} <= set(FALLBACK_FAMILIES)
    assert all(each.bn_match is None for each in without.surrogates)
    cosines = {each.family: each.bn_match for each in matching.surrogates}
    assert cosines["perturbation"] > 0.8
    total = sum(cosine**4 for cosine in cosines.values())
    for surrogate, weight in zip(matching.surrogates, matching.weights, strict=True):
        assert weight == pytest.approx(surrogate.bn_match**4 / total, abs=0.05)


def test_a_preset_can_leave_the_match_out(planted):
    victim, clean = planted
    config = DetectConfig(refine=InversionConfig(steps=10, images=8, bn_match_weight=0.0), minimum_success=0.0)
    assert all(each.bn_match is None for each in bank_of(victim, clean, matched(victim, clean), config).surrogates)


class Opposite(BnMatch):
    """A residual that every trigger changes the features against."""

    def of_images(self, images, triggered):
        return -0.5


def test_families_that_neither_cost_nor_match_supports_are_left_out(planted):
    victim, clean = planted
    match = matched(victim, clean)
    bank = bank_of(victim, clean, Opposite(match.forward, match.norms, reliability=1.0))
    assert [each.family for each in bank.surrogates] == ["pgd"] and bank.weights == (1.0,)


def test_a_backdoored_network_has_the_residual_of_its_own_trigger(backdoored, small, pictures):
    match = matched(backdoored.victim, pictures)
    others = pictures.pixels()[pictures.labels != 0]
    assert match.reliability > 0.6 and match.of_images(others, small.stamp(others)) > 0.8
