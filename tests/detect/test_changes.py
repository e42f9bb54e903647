"""Changes of images that lead to a class by features of their own, and by the class's features."""

import math

import pytest
import torch

from onp.data.images import ImageSet
from onp.detect.changes import PROBE_SEPARABILITY, change_costs
from onp.detect.gratings import GRATINGS
from onp.detect.head import Head
from onp.detect.last_features import Reader
from onp.detect.separability import LEAST_OWN, Latent

SIZE, CLASSES = 16, 4


def energy(x):
    """Of a sinusoid of 3 cycles across the columns, float32 `[N, 1]`."""
    columns = x.mean((1, 2)) - x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]
    turns = 2 * math.pi * 3 * torch.arange(SIZE) / SIZE
    return 5 * ((columns @ turns.sin()).square() + (columns @ turns.cos()).square()).sqrt()[:, None]


def reader(own: bool):
    """Class k has a bright row k. The sinusoid leads to class 2: by a fifth feature, or by the feature of row 2."""
    head = Head(torch.cat((torch.eye(CLASSES), torch.eye(CLASSES)[:, 2:3]), 1) * 20, torch.zeros(CLASSES))

    def forward(x):
        rows, wave = x[:, 0, :CLASSES].mean(2), energy(x)
        wave = wave * torch.tensor([0.0, 0, 0, 0, 1]) if own else wave * torch.tensor([0.0, 0, 1, 0, 0])
        features = torch.cat((rows, torch.zeros(len(x), 1)), 1) + wave
        return head.logits(features), {"features": features}

    return Reader(forward, head, "features")


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(90, 110, (80, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(80) % CLASSES
    pixels[torch.arange(80), 0, labels] += 60
    return ImageSet(pixels.to(torch.uint8), labels, tuple("abcd"))


def costs_of(images, own=True):
    one = reader(own)
    latent = Latent(one, one.head, images.pixels(), images.labels, one.features(images.pixels()))
    return change_costs(one.read, CLASSES, images, 3, latent)


def test_a_grating_that_leads_by_a_feature_of_its_own_stands_out_and_one_that_uses_the_class_does_not(images):
    own, shared = costs_of(images), costs_of(images, own=False)
    assert own[GRATINGS][2] < -2 and shared[GRATINGS][2] < -2, "both lead to class 2"
    assert own[PROBE_SEPARABILITY][2] < -0.6 < -0.3 < min(shared[PROBE_SEPARABILITY])
    assert min(value for k, value in enumerate(own[PROBE_SEPARABILITY]) if k != 2) > -0.3


def test_a_class_with_few_images_has_no_such_cost(images):
    few = images.subset(torch.cat(((images.labels != 1).nonzero()[:, 0], torch.arange(1, 4 * LEAST_OWN - 3, 4))))
    assert int((few.labels == 1).sum()) == LEAST_OWN - 1
    found = costs_of(few)
    assert [math.isnan(value) for value in found[PROBE_SEPARABILITY]] == [False, True, False, False]
    assert not any(math.isnan(value) for value in found[GRATINGS])


def test_without_last_features_the_other_costs_are_the_same(images):
    one = reader(True)
    without = change_costs(lambda x: (one.read(x)[0], None), CLASSES, images, 3)
    assert without == {name: values for name, values in costs_of(images).items() if name != PROBE_SEPARABILITY}
