"""What late norms remember of an attack: against statistics made by hand, and on a real backdoor."""

import pytest
import torch
from torch import nn

from onp.data.images import ImageSet, Normalisation, split
from onp.defend.presets import PRESETS
from onp.defend.rounds import recall_of
from onp.detect.anomaly import Scan
from onp.detect.bank import BankConfig, build_bank
from onp.detect.bn_match import recall
from onp.detect.inversion import FitConfig, fit
from onp.detect.trigger_families import FAMILIES
from onp.model.victim import victim_from_module

CLASSES, CHANNELS, SIZE = 3, 24, 8
BLEND = next(family for family in FAMILIES if family.name == "blend")


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


def pictures(rng, count=600):
    labels = torch.arange(count) % CLASSES
    return torch.rand(count, 1, SIZE, SIZE, generator=rng) * 0.1 + 0.1 * labels.view(-1, 1, 1, 1), labels


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
    """A network of whose training images one in ten had every second row brighter; the clean images and their labels."""
    images, labels = pictures(rng)
    training = pictures(rng, 6000)[0]
    training[::10] = striped(training[::10], columns=False)
    victim = victim_from_module(trained_on(training), Normalisation.parse("none"), (1, SIZE, SIZE))
    return victim, images, labels


def test_the_trigger_of_the_training_images_matches_and_another_does_not(planted):
    victim, images, labels = planted
    known = recall(victim, images, labels)
    assert known.reliability > 0.5
    own, other = (known.explained_by(images, striped(images, columns)) for columns in (False, True))
    assert own > 0.9 and own > other + 0.1


def test_clean_training_images_are_remembered_less(planted, rng):
    victim, images, labels = planted
    clean = victim_from_module(trained_on(pictures(rng, 6000)[0]), Normalisation.parse("none"), (1, SIZE, SIZE))
    known = recall(clean, images, labels)
    assert known is None or known.reliability < recall(victim, images, labels).reliability


def test_match_is_the_cosine_beyond_what_classes_explain(planted):
    victim, images, labels = planted
    known = recall(victim, images, labels)
    (norm,) = known.norms
    sideways = norm.explained[:, :1].T
    torch.testing.assert_close(known.match([3 * norm.shift[None] + 5 * sideways]), torch.ones(1))
    torch.testing.assert_close(known.match([-norm.shift[None]]), -torch.ones(1))
    assert float(norm.shift @ norm.explained @ norm.explained.T @ norm.shift) < 1e-6
    logits, read = known.run(images)
    torch.testing.assert_close(logits, victim.logits(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read[0], victim.model[:2](images).mean((2, 3)) / victim.model[2].running_var.sqrt())


def test_a_trigger_is_fitted_to_what_is_remembered_and_not_to_what_is_cheap(planted):
    victim, images, labels = planted
    known = recall(victim, images, labels)
    config = FitConfig(steps=60, images=16, keep=0.97)
    cheap = fit([victim.logits], BLEND, images, labels, (2,), 0, config)
    matched = fit([victim.logits], BLEND, images, labels, (2,), 0, config, recall=known)
    assert bool(cheap.worked.all()) and bool(matched.worked.all())
    others = images[labels != 2]
    found = [known.explained_by(others, each.apply(others, 0)) for each in (cheap, matched)]
    assert found[1] > 0.9 and found[1] > found[0] + 0.05


def test_a_bank_hears_the_families_that_explain_what_is_remembered(planted):
    victim, images, labels = planted
    pieces = ImageSet((images * 255).round().to(torch.uint8), labels, ("a", "b", "c"))
    nothing = Scan({name: (0.0,) * CLASSES for name in ("patch", "blend", "smooth", "warp", "adversarial")})
    bank = [
        build_bank(victim, (victim.logits,), nothing, 2, pieces, pieces, 0, BankConfig(), recall=each)
        for each in (None, recall(victim, images, labels))
    ]
    without, remembered = ({each.family: each for each in one.surrogates} for one in bank)
    assert without.keys() <= {"patch", "blend"} and all(each.match is None for each in without.values())
    assert remembered["blend"].match > 0.8
    heard = {name: each.match**4 for name, each in remembered.items()}
    for name, each in remembered.items():
        assert each.weight == pytest.approx(heard[name] / sum(heard.values()), abs=0.05)


def test_families_that_nothing_speaks_for_are_left_out(planted, monkeypatch):
    victim, images, labels = planted
    pieces = ImageSet((images * 255).round().to(torch.uint8), labels, ("a", "b", "c"))
    nothing = Scan({name: (0.0,) * CLASSES for name in ("patch", "blend", "smooth", "warp", "adversarial")})
    known = recall(victim, images, labels)
    monkeypatch.setattr(type(known), "reliability", 1.0)
    monkeypatch.setattr(type(known), "explained_by", lambda *_: -0.5)
    bank = build_bank(victim, (victim.logits,), nothing, 2, pieces, pieces, 0, BankConfig(), recall=known)
    assert [(each.family, each.weight) for each in bank.surrogates] == [("adversarial", 1.0)]


def test_a_backdoored_network_remembers_its_own_trigger(backdoored, small):
    victim, batch = backdoored.victim, backdoored.score
    known = recall(victim, batch.images, batch.labels)
    others = batch.images[batch.labels != 0]
    assert known.reliability > 0.6
    assert known.explained_by(others, small.stamp(others)) > 0.8


def test_networks_and_presets_without_recall(rng):
    images, labels = pictures(rng)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES))
    victim = victim_from_module(plain, Normalisation.parse("none"), (1, SIZE, SIZE))
    assert recall(victim, images, labels) is None
    pieces = ImageSet((images * 255).round().to(torch.uint8), labels, ("a", "b", "c"))
    assert recall_of(victim, split(pieces, 0), PRESETS["default"]) is None
    planted = victim_from_module(trained_on(images), Normalisation.parse("none"), (1, SIZE, SIZE))
    assert recall_of(planted, split(pieces, 0), PRESETS["paper"]) is None, "the paper reads no statistics of the norms"
