"""Trigger inversion: planted triggers are found, large images in several parts, and a resumed run reads what was inverted."""

import pytest
import torch
from torch import nn

from onp.data.images import split
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, NORM, clean_images, demo
from onp.detect.config import DetectRun, InversionConfig
from onp.detect.inversion import InversionTask, invert, success_rate
from onp.detect.trigger_families import FAMILIES
from onp.engine.metrics import at_once
from onp.model.victim import load_victim
from onp.resume import Store

FAMILY = {family.name: family for family in FAMILIES}


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
    task = InversionTask([Corner()], images, labels, (2,))
    found = invert(FAMILY["patch"], task, InversionConfig(steps=80, images=16), DetectRun())
    assert bool(found.worked.all())
    assert success_rate(Corner(), lambda x: found.apply(x, 0), images, labels, 2) > 0.8
    mask = torch.sigmoid(found.parameters[0])[0, 0]
    assert float(mask[-3:, -3:].sum()) > 0.6 * float(mask.sum())


class Slope(nn.Module):
    """Class 0; 1 where the left is brighter than the right by a fifth, 2 where it is darker by four fifths."""

    def forward(self, x):
        difference = x[..., :6].mean((1, 2, 3)) - x[..., 6:].mean((1, 2, 3))
        return torch.stack((torch.zeros_like(difference), 40 * (difference - 0.2), 40 * (-difference - 0.8)), 1)


def test_a_low_frequency_perturbation_is_cheapest_where_one_was_planted():
    images, labels = torch.rand(60, 1, 12, 12) * 0.1 + 0.45, torch.zeros(60, dtype=torch.int64)
    task = InversionTask([Slope()], images, labels, (1, 2))
    found = invert(FAMILY["low_frequency"], task, InversionConfig(steps=100, images=8), DetectRun())
    assert found.worked.tolist() == [True, True] and float(found.cost[0]) < 0.5 * float(found.cost[1])
    image = found.apply(torch.full((1, 1, 12, 12), 0.5), 0)[0, 0]
    assert float(image[:, :5].mean()) > float(image[:, 7:].mean()) + 0.1
    assert float((image[1:] - image[:-1]).abs().max()) < 0.1, "no fine detail"
    assert success_rate(Slope(), lambda x: found.apply(x, 0), images, labels, 1) > 0.8


def test_the_embedded_wanet_is_reached_by_a_small_warp_and_another_class_is_not():
    victim = load_victim(demo("wanet").model, ARCH, Normalisation.parse(NORM), (1, 28, 28))
    splits = split(clean_images(), 0)
    build, score = splits.build, splits.score
    task = InversionTask([victim.logits], build.pixels(), build.labels, (0, 1))
    found = invert(FAMILY["warp"], task, InversionConfig(steps=50, images=12, min_confidence=0.9), DetectRun())
    assert found.worked.tolist() == [True, False]
    assert float(found.cost[0]) < 0.5 * float(found.cost[1])
    assert success_rate(victim.logits, lambda x: found.apply(x, 0), score.pixels(), score.labels, 0) > 0.8


def test_inversion_serves_every_model_and_repeats_itself():
    images, labels = corner_images()
    task, config = InversionTask([Corner(), Corner()], images, labels, (2, 0)), InversionConfig(steps=5, images=4)
    first, second = (invert(FAMILY["perturbation"], task, config, DetectRun(seed=3)) for _ in range(2))
    assert torch.equal(first.parameters[0], second.parameters[0]) and torch.equal(first.cost, second.cost)


def test_how_many_images_run_together():
    assert at_once(torch.empty(5, 3, 32, 32), 250) == 250
    assert at_once(torch.empty(5, 3, 224, 224), 250) == 27
    assert at_once(torch.empty(2, 5, 3, 224, 224), 250) == 27, "images [G, N, C, H, W] count the same"
    assert at_once(torch.empty(5, 3, 4096, 4096), 250) == 1
    assert at_once(torch.empty(5, 3, 32, 32), 250, values=2 * 3 * 32 * 32) == 2


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_few_at_a_time_invert_the_same_triggers(backdoored, family):
    images, labels, victim = backdoored.build.images, backdoored.build.labels, backdoored.victim
    task, config = InversionTask([victim.logits, victim.logits], images, labels, (0, 1, 2, 3)), InversionConfig(6, 3)
    whole, *others = (  # all four classes, two, and one at a time
        invert(family, task, config, DetectRun(seed=7, values_at_once=values)) for values in (2**22, 2 * 3 * 64, 1)
    )
    for other in others:
        torch.testing.assert_close(other.cost, whole.cost, rtol=1e-3, atol=1e-4)
        assert torch.equal(other.worked, whole.worked)


def test_success_is_measured_on_as_many_images_at_once_as_memory_bears():
    images, labels, sizes = torch.rand(3, 1, 2048, 2048), torch.tensor([0, 0, 1]), []

    def brightness(x):
        sizes.append(len(x))
        return torch.stack((x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))), 1)

    assert success_rate(brightness, torch.zeros_like, images, labels, 1) == 1.0 and sizes == [1, 1]
    assert success_rate(brightness, torch.zeros_like, images, torch.ones(3, dtype=torch.int64), 1) == 0.0, "no other class"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.begin({})
    return store


def test_a_resumed_inversion_is_read_and_counts_its_steps_as_known(store):
    images, labels = corner_images()
    task, config = InversionTask([Corner()], images, labels, (2, 0)), InversionConfig(steps=5, images=4)
    counted = []

    def progress(steps=1, *, known=False):
        counted.append((steps, known))

    first = invert(FAMILY["patch"], task, config, DetectRun(progress=progress, store=store))
    assert counted == [(1, False)] * 5
    counted.clear()
    unusable = InversionTask([None], images, labels, (2, 0))  # a model that cannot be asked
    second = invert(FAMILY["patch"], unusable, config, DetectRun(progress=progress, store=store))
    assert counted == [(5, True)]
    for one, other in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first.cost, second.cost) and torch.equal(first.worked, second.worked)


def test_inversions_that_differ_in_anything_are_kept_apart(store):
    images, labels = corner_images()
    config = InversionConfig(steps=2, images=4)
    cases = [
        ("patch", [Corner()], (2, 0), config, 0),
        ("perturbation", [Corner()], (2, 0), config, 0),
        ("patch", [Corner(), Corner()], (2, 0), config, 0),
        ("patch", [Corner()], (0, 2), config, 0),
        ("patch", [Corner()], (2, 1, 0), config, 0),  # of the same length, ends and number as the next
        ("patch", [Corner()], (2, 0, 0), config, 0),
        ("patch", [Corner()], (2, 0), config, 1),
        ("patch", [Corner()], (2, 0), InversionConfig(steps=3, images=4), 0),
        ("patch", [Corner()], (2, 0), InversionConfig(steps=2, images=5), 0),
        ("patch", [Corner()], (2, 0), InversionConfig(steps=2, images=4, min_confidence=0.5), 0),
        ("patch", [Corner()], (2, 0), InversionConfig(steps=2, images=4, bn_match_weight=0.0), 0),
    ]
    for number, (family, models, targets, settings, seed) in enumerate(cases, 1):
        invert(FAMILY[family], InversionTask(models, images, labels, targets), settings, DetectRun(seed=seed, store=store))
        assert len(list(store.folder.glob("*.safetensors"))) == number
