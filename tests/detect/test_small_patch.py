"""Small patches: the corner that a network looks at is found, and the patch that it looks for is fitted."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from onp.data.images import ImageSet
from onp.detect.changes import change_costs, changed_images, sweep_of
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.inversion import InversionTask
from onp.detect.patch_sweep import PATCH_SWEEP, PATTERNS, PLACES, SWEPT, patch_side, stamped, start_of, swept
from onp.detect.small_patch import STEPS, small_patch_probability

HEIGHT, WIDTH, CLASSES = 16, 20, 4
WANTED = torch.tensor([[0.9, 0.2], [0.1, 0.8]])  # in the lower right corner, of class 2


def logits(x):
    """Class 0; class 2 the more, the nearer the corner is to what it looks for."""
    distance = (x[:, :, -2:, -2:] - WANTED).square().mean((1, 2, 3))
    return torch.stack((0 * distance + 1, 0 * distance, 3 - 40 * distance, 0 * distance), 1)


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(120, 130, (40, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.arange(40) % CLASSES, ("a", "b", "c", "d"))


def test_patches_cover_their_place_alone():
    generator = torch.Generator().manual_seed(1)
    images, patches = torch.rand(3, 2, 7, 9, generator=generator), torch.rand(4, 2, 3, 3, generator=generator)
    corners = torch.tensor([[0, 0], [4, 6], [2, 5], [3, 0]])
    for given in (images, images.expand(4, -1, -1, -1, -1) * torch.arange(1, 5).view(4, 1, 1, 1, 1) / 4):
        expected = given.expand(4, -1, -1, -1, -1).clone()
        for g, (row, column) in enumerate(corners.tolist()):
            expected[g, :, :, row : row + 3, column : column + 3] = patches[g]
        torch.testing.assert_close(stamped(given, patches, corners), expected, rtol=0, atol=0)
    assert stamped(images[:0], patches, corners).shape == (4, 0, 2, 7, 9)
    assert stamped(images, patches[:0], corners[:0]).shape == (0, 3, 2, 7, 9)
    exact = patches[:2].double().requires_grad_()
    assert gradcheck(lambda each: stamped(images[:2].double(), each, corners[:2]), (exact,))


def test_the_sweep_puts_every_pattern_at_every_place_from_edge_to_edge(images):
    found = list(swept(images, 3, 5))
    pixels, picked = (torch.cat([each[index] for each in found]) for index in (1, 2))
    assert {name for name, _, _ in found} == {PATCH_SWEEP} and SWEPT == PATTERNS * PLACES**2
    assert pixels.shape == (SWEPT, 3, 1, HEIGHT, WIDTH) and picked.shape == (SWEPT, 3)
    patches, corners = start_of(torch.arange(SWEPT), images.images, 5)
    torch.testing.assert_close(pixels, stamped(images.subset(picked[0]).pixels(), patches, corners), rtol=0, atol=0)
    side = patch_side(HEIGHT, WIDTH)
    assert side == 2 and patches.shape == (SWEPT, 1, side, side) and set(patches.unique().tolist()) == {0, 1}
    assert corners.amin(0).tolist() == [0, 0] and corners.amax(0).tolist() == [HEIGHT - side, WIDTH - side]
    assert (
        len({(*patch.flatten().tolist(), *corner.tolist()) for patch, corner in zip(patches, corners, strict=True)})
        > 4 * PLACES**2
    )


def test_the_class_that_looks_at_a_corner_has_the_lowest_cost_and_its_patch_is_fitted(images):
    steps = []
    run = DetectRun(seed=3, progress=lambda count=1, known=False: steps.append(count))
    changes = change_costs(logits, CLASSES, images, run)
    costs = changes.costs[PATCH_SWEEP]
    assert min(costs) == costs[2] < 0 < min(costs[1], costs[3])
    torch.testing.assert_close(changes.sweep, sweep_of(logits, CLASSES, images, run), rtol=0, atol=0)
    best = int(changes.sweep[:, 2].argmax())
    assert start_of(torch.tensor([best]), images.images, 3)[1].tolist() == [[HEIGHT - 2, WIDTH - 2]]

    steps.clear()
    task = InversionTask((logits,), images.pixels(), images.labels, (1, 2))
    reached = small_patch_probability(task, (images.pixels(), images.labels), changes.sweep, run)
    assert sum(steps) == STEPS and reached.shape == (2,)
    assert float(reached[1]) > max(0.75, float(changes.sweep[:, 2].max()) + 0.1) and float(reached[0]) < 0.3
    again = small_patch_probability(task, (images.pixels(), images.labels), changes.sweep, run)
    assert torch.equal(reached, again)


def test_a_class_that_all_images_to_measure_on_belong_to_has_no_probability(images):
    sweep = sweep_of(logits, CLASSES, images, DetectRun(seed=3))
    task = InversionTask((logits,), images.pixels(), images.labels, (1, 2))
    one_class = torch.ones_like(images.labels)
    reached = small_patch_probability(task, (images.pixels(), one_class), sweep, DetectRun(seed=3))
    assert [math.isnan(value) for value in reached.tolist()] == [True, False]


def test_large_networks_are_shown_fewer_images():
    usual, few = (changed_images(300, DetectConfig(change_images=count)) for count in (32, 8))
    assert usual - changed_images(0, DetectConfig()) >= 7 * SWEPT and 2 * SWEPT <= few < usual / 3
