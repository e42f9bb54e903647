"""Surrogate families, the latent direction, and the evidence they give."""

import pytest
import torch
from torch import nn

from onp.data.augment import views
from onp.data.images import ImageSet, Normalisation
from onp.defend.config import DefendConfig
from onp.defend.inputs import read_case, with_demo
from onp.detect.anomaly import Scan, efforts, evidence, least_spread
from onp.detect.bank import BankConfig
from onp.detect.detectors import DRIFT_COPIES, drift
from onp.detect.inversion import FitConfig, fit, success_rate
from onp.detect.latent import latent_directions
from onp.detect.pgd import adversarial_size, targeted_examples
from onp.detect.trigger_families import FAMILIES
from onp.model.victim import victim_from_module


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_changes_images_within_range_and_has_gradients(family):
    shape = (3, 13, 17)
    parameters = tuple(value.requires_grad_() for value in family.start(4, shape, torch.Generator().manual_seed(0)))
    images = torch.rand(4, 5, *shape)
    out = family.apply(parameters, images)
    assert out.shape == images.shape and bool(((out >= 0) & (out <= 1)).all())
    assert family.cost(parameters).shape == (4,) and bool((family.cost(parameters) > 0).all())
    gradients = torch.autograd.grad(out.square().sum() + family.cost(parameters).sum(), parameters)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_stronger_triggers_cost_so_many_times_more(family):
    parameters = family.start(2, (1, 12, 12), torch.Generator().manual_seed(2))
    stronger = family.stronger(parameters, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(family.cost(stronger), family.cost(parameters) * torch.tensor([1.0, 1.5]), rtol=0.02, atol=0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_trigger_of_a_family_is_its_own(family):
    parameters = family.start(3, (1, 12, 12), torch.Generator().manual_seed(1))
    images = torch.rand(3, 2, 1, 12, 12)
    together = family.apply(parameters, images)
    for row in range(3):
        alone = family.apply(tuple(value[row : row + 1] for value in parameters), images[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


class Corner(nn.Module):
    """Two classes by brightness; a bright bottom right corner leads to class 2."""

    def forward(self, x):
        corner = x[:, :, -3:, -3:].mean((1, 2, 3))
        rest = x[:, :, :-3].mean((1, 2, 3))
        return torch.stack((20 * (0.5 - rest), 20 * (rest - 0.5), 60 * (corner - 0.5)), 1)


def corner_images(count=60):
    images = torch.rand(count, 1, 12, 12) * 0.4 + torch.tensor([0.0, 0.6]).repeat(count // 2).view(-1, 1, 1, 1)
    images[:, :, -3:, -3:] = torch.rand(count, 1, 3, 3) * 0.3
    return images, torch.tensor([0, 1]).repeat(count // 2)


def test_a_patch_shrinks_onto_the_planted_corner():
    images, labels = corner_images()
    patch = next(family for family in FAMILIES if family.name == "patch")
    found = fit([Corner()], patch, images, labels, (2,), 0, FitConfig(steps=80, images=16))
    assert bool(found.worked.all())
    assert success_rate(Corner(), lambda x: found.apply(x, 0), images, labels, 2) > 0.8
    mask = torch.sigmoid(found.parameters[0])[0, 0]
    assert float(mask[-3:, -3:].sum()) > 0.6 * float(mask.sum())


class Slope(nn.Module):
    """Class 0; 1 where the left is brighter than the right by a fifth, 2 where it is darker by four fifths."""

    def forward(self, x):
        difference = x[..., :6].mean((1, 2, 3)) - x[..., 6:].mean((1, 2, 3))
        return torch.stack((torch.zeros_like(difference), 40 * (difference - 0.2), 40 * (-difference - 0.8)), 1)


def test_a_smooth_image_leads_most_cheaply_where_a_smooth_trigger_was_planted():
    images, labels = torch.rand(60, 1, 12, 12) * 0.1 + 0.45, torch.zeros(60, dtype=torch.int64)
    smooth = next(family for family in FAMILIES if family.name == "smooth")
    found = fit([Slope()], smooth, images, labels, (1, 2), 0, FitConfig(steps=100, images=8))
    assert found.worked.tolist() == [True, True] and float(found.cost[0]) < 0.5 * float(found.cost[1])
    image = found.apply(torch.full((1, 1, 12, 12), 0.5), 0)[0, 0]
    assert float(image[:, :5].mean()) > float(image[:, 7:].mean()) + 0.1
    assert float((image[1:] - image[:-1]).abs().max()) < 0.1, "no fine detail"
    assert success_rate(Slope(), lambda x: found.apply(x, 0), images, labels, 1) > 0.8


def test_the_bundled_wanet_is_reached_by_a_small_warp_and_another_class_is_not():
    case = read_case(with_demo(DefendConfig(demo="wanet")))
    build, score = case.splits.build, case.splits.score
    warp = next(family for family in FAMILIES if family.name == "warp")
    found = fit([case.victim.logits], warp, build.pixels(), build.labels, (0, 1), 0, FitConfig(steps=50, images=12))
    assert found.worked.tolist() == [True, False]
    assert float(found.cost[0]) < 0.5 * float(found.cost[1])
    assert success_rate(case.victim.logits, lambda x: found.apply(x, 0), score.pixels(), score.labels, 0) > 0.8


def test_fit_serves_every_model_and_repeats_itself():
    images, labels = corner_images()
    blend = next(family for family in FAMILIES if family.name == "blend")
    first = fit([Corner(), Corner()], blend, images, labels, (2, 0), 3, FitConfig(steps=5, images=4))
    second = fit([Corner(), Corner()], blend, images, labels, (2, 0), 3, FitConfig(steps=5, images=4))
    assert torch.equal(first.parameters[0], second.parameters[0]) and torch.equal(first.cost, second.cost)


def test_latent_direction_is_shortest_and_sufficient():
    features, weight, bias = torch.randn(80, 12), torch.randn(5, 12), torch.randn(5)
    for k, shift in enumerate(latent_directions(features, weight, bias, quantile=1.0)):
        logits = ((features + shift).double() @ weight.double().T) + bias.double()
        margin = (logits[:, [k]] - logits).min()
        assert float(margin) > -1e-4  # every image reaches class k
        shorter = ((features + 0.98 * shift).double() @ weight.double().T) + bias.double()
        assert bool((shorter[:, [k]] - shorter < 0).any())  # and no shorter one in that direction does


def test_evidence_is_loud_for_the_cheap_class_only_and_ignores_the_unit():
    cost = torch.tensor([30.0, 28, 33, 5, 31, 29, 35, 27, 30, 32])
    effort = efforts(cost, torch.ones(10))
    said = [evidence(effort, k) for k in range(10)]
    assert max(said) == said[3] > 5 and sorted(said)[-2] < 2
    assert evidence(efforts(cost * 1000, torch.ones(10)), 3) == pytest.approx(said[3])
    assert evidence(effort, 3, changed=effort[0]) == pytest.approx(0, abs=0.5)


def test_a_trigger_that_does_not_work_is_no_evidence():
    cost, success = torch.full((10,), 20.0), torch.full((10,), 0.9)
    cost[4], success[4] = 10.0, 0.05
    assert evidence(efforts(cost, success), 4) < 0


def test_several_quiet_witnesses_convict_and_one_loud_one_does_not():
    def said(*evidence):
        """A scan in which each witness gives class 7 so much evidence and the other classes none."""
        names = ("latent", "drift", "memory", "patch", "blend")
        return Scan({
            name: tuple(-each * least_spread(name) if k == 7 else 0.0 for k in range(10))
            for name, each in zip(names, evidence, strict=True)
        })  # fmt: skip

    threshold = BankConfig().threshold
    assert said(0.0, 0.0, 0.0, 60.0, 0.0).suspicion[7] == pytest.approx(2.5) and threshold > 2.5
    assert said(0.0, 0.0, 5.0, 5.0, 0.0).suspicion[7] == pytest.approx(5.0) and threshold < 5.0
    several = said(1.9, 0.9, 1.9, 2.4, 1.9)
    assert several.suspicion == pytest.approx([0.0] * 7 + [0.9 + 0.9 + 1.4 + 0.9] + [0.0] * 2)
    assert several.suspicion[7] >= threshold and several.suspect == 7
    assert max(said(0.9, 0.9, 0.9, 0.9, 0.9).suspicion) == 0, "what is noise in each is noise in all"


def test_drift_is_what_other_classes_lose_to_a_class(backdoored):
    victim, batch = backdoored.victim, backdoored.score
    images = ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))
    attracted = drift(victim, images, 5)
    pixels, labels = views(images.pixels(), DRIFT_COPIES, 5), images.labels.tolist() * DRIFT_COPIES
    with torch.no_grad():
        chance = victim.logits(pixels).softmax(1)
    for k in range(4):
        by_hand = [float(chance[row, k]) for row, label in enumerate(labels) if label != k]
        assert float(attracted[k]) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_drift_is_evidence_from_a_factor_of_e():
    rates = torch.full((10,), 0.02)
    rates[6] = 0.02 * torch.e**3
    said = Scan({"drift": tuple((-rates.log()).tolist())}).witnesses["drift"]
    assert said[6] == pytest.approx(3, abs=1e-4) and max(said[:6]) == pytest.approx(0, abs=1e-4)


def test_adversarial_examples_stay_in_their_ball_and_help_their_target():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4))
    victim = victim_from_module(network, Normalisation((0.0,), (1.0,)), (1, 8, 8))
    images = torch.rand(20, 1, 8, 8)
    size = adversarial_size(images)
    out = targeted_examples(victim, images, target=2, size=size)
    assert float((out - images).flatten(1).norm(dim=1).max()) <= size * 1.001
    before, after = (victim.logits(x).softmax(1)[:, 2].mean() for x in (images, out))
    assert float(after) > float(before)
