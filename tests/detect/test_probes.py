"""Probes: each kind of random changes finds the class that its own kind of trigger leads to."""

from unittest import mock

import pytest
import torch

from onp.data.images import ImageSet
from onp.detect import probes
from onp.detect.changes import CHANGE_STEPS, change_costs
from onp.detect.config import DetectRun
from onp.detect.gratings import GRATINGS
from onp.detect.patch_sweep import PATCH_SWEEP
from onp.detect.probes import INSTANCES, PROBES


def logits(x):
    """Class 0; class 2 where the image's left half is brighter than its right one."""
    difference = x[..., :6].mean((1, 2, 3)) - x[..., 6:].mean((1, 2, 3))
    return torch.stack((0 * difference + 1, 0 * difference, 60 * difference, 0 * difference), 1)


@pytest.fixture(scope="module")
def found():
    images = ImageSet(torch.randint(100, 150, (80, 1, 12, 12), dtype=torch.uint8), torch.arange(80) % 4, ("a", "b", "c", "d"))
    return images, change_costs(logits, 4, images, DetectRun(seed=3)).costs


def test_a_class_that_fields_lead_to_is_lowest_by_fields(found):
    _, costs = found
    assert set(costs) == {*PROBES, GRATINGS, PATCH_SWEEP}
    assert min(costs["probe_field"]) == costs["probe_field"][2] < -0.5
    assert costs["probe_field"][1] > -0.1, "other classes are not reached"


def test_changes_keep_the_shape_and_are_drawn_anew_each_time(found):
    images, _ = found
    pixels = images.pixels()
    for name, probe in PROBES.items():
        generator = torch.Generator().manual_seed(1)
        one, other = probe.change(pixels, generator), probe.change(pixels, generator)
        assert one.shape == pixels.shape and not torch.equal(one, other), name
        assert torch.equal(one, probe.change(pixels, torch.Generator().manual_seed(1))), name
        assert 1 <= probe.highest <= INSTANCES


def test_colour_images_and_a_class_without_other_images(found):
    images, _ = found
    one_class = ImageSet(images.images, torch.ones_like(images.labels), images.class_names)
    costs = change_costs(logits, 4, one_class, DetectRun(seed=3)).costs["probe_warp"]
    assert [value != value for value in costs] == [False, True, False, False]
    colour = torch.rand(5, 3, 9, 10)
    for probe in PROBES.values():
        assert probe.change(colour, torch.Generator().manual_seed(2)).shape == colour.shape


def test_large_images_are_changed_a_few_at_a_time_and_counted(found):
    images, costs = found
    steps, together = [], []

    def counted(x):
        together.append(len(x))
        return logits(x)

    run = DetectRun(seed=3, progress=lambda count=1, known=False: steps.append(count))
    with mock.patch.object(probes, "at_once", lambda images, count: 100):
        few = change_costs(counted, 4, images, run).costs
    assert together.count(3 * DetectRun().config.change_images) == len(PROBES) * INSTANCES / 3 and sum(steps) == CHANGE_STEPS
    for name, values in costs.items():
        assert few[name] == pytest.approx(values, abs=1e-5)
