"""Features of triggers against those of the class's own images."""

import math

import pytest
import torch
from torch import nn

from onp.data.images import joined, split
from onp.data.normalisation import Normalisation
from onp.detect.config import DetectRun, InversionConfig
from onp.detect.inversion import InversionTask, invert
from onp.detect.separability import (
    LEAST_OWN,
    SEPARABILITY,
    SEPARATED,
    Latent,
    discount_costly_classes,
    separability_costs,
)
from onp.detect.trigger_families import Patch
from onp.engine.differentiable import fitting_logits
from onp.model.victim import victim_from_module

CLASSES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def images(small):
    clean = split(small.clean_images(), 0)
    return joined(clean.build, clean.score)


def test_patches_to_the_target_of_a_backdoor_use_other_features_than_its_images(backdoored, images, one_thread):
    latent = Latent.of(backdoored.victim, images)
    task = InversionTask((fitting_logits(backdoored.victim),), images.pixels(), images.labels, CLASSES)
    patches = invert(Patch(), task, InversionConfig(60, 8), DetectRun())
    found = [latent.similarity(lambda x, row=row: patches.apply(x, row), k) for row, k in enumerate(CLASSES)]
    assert found[0] < min(found[1:]) - 0.05


def test_images_of_the_class_itself_are_wholly_similar(backdoored, images):
    latent = Latent.of(backdoored.victim, images)
    own = images.pixels()[images.labels == 2]
    assert latent.similarity(lambda x: own[torch.arange(len(x)) % len(own)], 2) > 0.98


def test_nothing_is_said_of_a_trigger_that_leads_elsewhere_or_of_a_class_with_few_images(backdoored, images):
    latent = Latent.of(backdoored.victim, images)
    assert math.isnan(latent.similarity(lambda x: x, 2))
    own = images.pixels()[images.labels == 2]
    for count, said in ((LEAST_OWN, True), (LEAST_OWN - 1, False)):
        few = torch.cat(((images.labels != 2).nonzero()[:, 0], (images.labels == 2).nonzero()[:count, 0]))
        found = Latent.of(backdoored.victim, images.subset(few)).similarity(lambda x: own[torch.arange(len(x)) % len(own)], 2)
        assert math.isnan(found) != said


def test_a_network_whose_last_layer_is_not_linear_on_a_vector_has_no_such_features(images):
    head = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    victim = victim_from_module(head, Normalisation.parse("half"), tuple(images.images.shape[1:]))
    assert Latent.of(victim, images) is None


def test_the_cost_is_the_mean_of_the_families_that_say_something():
    nan = math.nan
    assert separability_costs([[0.5, nan, nan], [0.7, 0.4, nan]])[:2] == pytest.approx((0.6, 0.4))
    assert math.isnan(separability_costs([[0.5, nan, nan], [0.7, 0.4, nan]])[2])


def test_a_class_with_dear_triggers_is_not_told_by_their_features():
    nan = math.nan
    costs = {name: (1.0, 2.0, 3.0, 4.0, nan) for name in SEPARATED}
    found = discount_costly_classes(costs | {SEPARABILITY: (0.2, 0.9, 0.1, 0.95, nan), "latent": (1.0,) * 5})
    assert found[SEPARABILITY][:4] == pytest.approx((0.2, 0.9, 0.55, 0.95)) and math.isnan(found[SEPARABILITY][4])
    assert found["patch"] == costs["patch"] and found["latent"] == (1.0,) * 5
    again = discount_costly_classes(found)
    assert again[SEPARABILITY][:4] == found[SEPARABILITY][:4]
    assert discount_costly_classes(costs) == costs
