"""Gratings: the class that a sinusoid leads to, whatever images it is put on."""

import math

import pytest
import torch

from onp.data.images import ImageSet
from onp.detect.changes import change_costs
from onp.detect.config import DetectRun
from onp.detect.gratings import AMPLITUDE, CYCLES, DIRECTIONS, GRATINGS, PHASES, gratings


def costs_of(images):
    return change_costs(logits, 4, images, DetectRun(seed=3)).costs[GRATINGS]


def logits(x):
    """Class 0; class 2 where the columns hold much of a sinusoid of 3 cycles."""
    columns = x.mean((1, 2)) - x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]
    turns = 2 * math.pi * 3 * torch.arange(x.shape[3]) / x.shape[3]
    energy = (columns @ turns.sin()).square() + (columns @ turns.cos()).square()
    return torch.stack((0 * energy + 1, 0 * energy, 20 * energy, 0 * energy), 1)


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(120, 130, (40, 1, 15, 15), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.arange(40) % 4, ("a", "b", "c", "d"))


def test_the_class_of_one_sinusoid_has_the_lowest_cost(images):
    costs = costs_of(images)
    assert len(costs) == 4 and min(costs) == costs[2] < -1
    assert all(abs(cost) <= math.log(101) for cost in costs) and min(costs[0], costs[1], costs[3]) > 0
    assert costs == costs_of(images)


def test_a_class_that_all_images_belong_to_has_no_cost(images):
    one_class = ImageSet(images.images, torch.ones_like(images.labels), images.class_names)
    assert [math.isnan(cost) for cost in costs_of(one_class)] == [False, True, False, False]


def test_every_grating_is_the_sinusoid_of_its_frequency_direction_and_phase():
    waves = gratings(9, 12)
    assert waves.shape == (len(CYCLES) * DIRECTIONS, PHASES, 9, 12) and 0 < AMPLITUDE < 1
    columns = torch.arange(12) / 12
    torch.testing.assert_close(waves[0, 0, 4], torch.sin(2 * math.pi * columns))
    third = CYCLES.index(3) * DIRECTIONS
    torch.testing.assert_close(waves[third, 1, 7], torch.sin(2 * math.pi * (3 * columns + 1 / PHASES)))
    upwards = waves[third + DIRECTIONS // 2, 0]
    torch.testing.assert_close(upwards[:, 5], torch.sin(2 * math.pi * 3 * torch.arange(9) / 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(upwards, upwards[:, :1].expand(-1, 12), atol=1e-5, rtol=0)
