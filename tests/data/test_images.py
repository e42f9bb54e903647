"""Image sets: normalisation, splits, checks against a network, and the embedded images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.image_writers import pixels
from make_bundle_images import choose

from onp.data.images import ImageSet, check_for, split
from onp.data.normalisation import PRESETS, Normalisation
from onp.defend.demos import clean_images, eval_images
from onp.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def image_set(labels: list[int], shape: tuple[int, int, int] = (1, 4, 4)) -> ImageSet:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, *shape).to(torch.uint8)
    return ImageSet(images, torch.tensor(labels), tuple(str(label) for label in range(max(labels) + 1)))


@pytest.mark.parametrize("name", PRESETS)
def test_normalisation_presets(name: str) -> None:
    normalisation = Normalisation.parse(name)
    channels = len(normalisation.mean)
    images = torch.rand(2, channels, 3, 5, dtype=torch.float64)
    result = normalisation(images)
    assert result.dtype == torch.float32 and result.shape == images.shape
    for channel in range(channels):
        expected = (images[:, channel] - normalisation.mean[channel]) / normalisation.std[channel]
        torch.testing.assert_close(result[:, channel], expected.float())
    assert Normalisation.parse(str(normalisation)) == normalisation


def test_normalisation_by_numbers() -> None:
    assert Normalisation.parse("0.5,0.25,0/0.5,1,2") == Normalisation((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert torch.equal(Normalisation.parse("half")(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("text", ["cifar", "", "0.5", "0.5/", "a/b", "0.5/0.5/0.5"])
def test_bad_normalisation_lists_the_presets(text: str) -> None:
    with pytest.raises(InputError, match=r"cifar10.*imagenet.*gtsrb.*fashion-mnist.*half, none nor MEAN/STD"):
        Normalisation.parse(text)


@pytest.mark.parametrize("text", ["0.5,0.5/0.5", "0.5/0", "0.5/-1", "nan/1", "0/inf"])
def test_normalisation_refuses_impossible_numbers(text: str) -> None:
    with pytest.raises(InputError, match="normalisation"):
        Normalisation.parse(text)


def test_normalisation_of_other_channels() -> None:
    with pytest.raises(InputError, match="3 channels but the images have 1"):
        Normalisation.parse("cifar10")(torch.rand(2, 1, 4, 4))


def test_pixels_and_subset(rng: np.random.Generator) -> None:
    images = ImageSet(torch.from_numpy(pixels(rng, 4, 3, 2, 2)), torch.tensor([0, 1, 1, 0]), ("a", "b"))
    assert images.pixels().dtype == torch.float32
    torch.testing.assert_close(images.pixels() * 255, images.images.float())
    chosen = images.subset([2, 0])
    assert torch.equal(chosen.images, images.images[[2, 0]]) and chosen.labels.tolist() == [1, 0]
    assert len(images.subset(images.labels == 1)) == 2 and len(images.subset([])) == 0


def test_relabelled_by_class_name() -> None:
    images = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("bee", "cat"))
    assert images.relabelled(["ant", "bee", "cat"]).labels.tolist() == [1, 2, 2]
    with pytest.raises(InputError, match="'cat' is not among"):
        images.relabelled(["ant", "bee"])
    seventh = ImageSet(images.images, images.labels, ("1", "7"))
    assert seventh.relabelled([*"abcdefgh"]).labels.tolist() == [1, 7, 7], "folders named after the number of a class"
    with pytest.raises(InputError, match="'7' is not among"):
        seventh.relabelled(["ant", "bee", "cat"])
    numbered = image_set([0, 1, 1])
    assert numbered.relabelled(["ant", "bee", "cat"]).labels.tolist() == [0, 1, 1]


def test_split_is_stratified_disjoint_and_seeded(rng: np.random.Generator) -> None:
    labels = rng.permutation(np.repeat(np.arange(5), [3, 4, 10, 33, 50])).tolist()
    images = image_set(labels)
    seed = int(rng.integers(2**31))
    splits = split(images, seed)
    parts = [splits.build, splits.score, splits.holdout]
    # Every image is its own number.
    numbers = [part.images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(itertools.chain(*numbers)) == list(range(100))
    for part, size, ids in zip(parts, (30, 30, 40), numbers, strict=True):
        assert abs(len(part) - size) <= 2
        assert part.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert part.labels.tolist() == [labels[i] for i in ids]
        assert abs(int((part.labels == 4).sum()) - size / 2) <= 2
    assert [part.images[:, 0, 0, 0].tolist() for part in vars(split(images, seed)).values()] == numbers
    assert [part.images[:, 0, 0, 0].tolist() for part in vars(split(images, seed + 1)).values()] != numbers


def parts_of(images: ImageSet, seed: int = 0) -> list[tuple[list[object], list[int]]]:
    return [(part.images.tolist(), part.labels.tolist()) for part in vars(split(images, seed)).values()]


def test_split_depends_on_what_the_images_hold_and_not_on_their_order(rng: np.random.Generator) -> None:
    pixels = torch.from_numpy(rng.integers(0, 256, (60, 1, 3, 3), dtype=np.uint8))
    pixels[40:50] = pixels[:10]  # the same images twice, half of them with another label
    images = ImageSet(pixels, torch.arange(60) % 4, ("a", "b", "c", "d"))
    images.labels[40:45] = images.labels[:5]
    order = torch.from_numpy(rng.permutation(60))
    assert parts_of(images) == parts_of(images.subset(order))
    channels_last = ImageSet(pixels.contiguous(memory_format=torch.channels_last), images.labels, images.class_names)
    assert parts_of(images) == parts_of(channels_last)
    renumbered = ImageSet(pixels[:40], 3 - images.labels[:40], images.class_names)
    expected = [(held, [3 - label for label in labels]) for held, labels in parts_of(images.subset(range(40)))]
    assert parts_of(renumbered) == expected, "nor on the number of a class"


def test_split_mixes_the_classes_in_each_part() -> None:
    labels = split(image_set([label for label in range(2) for _ in range(100)]), 0).build.labels
    assert 10 < int((labels[1:] != labels[:-1]).sum()) < 50, "neither class by class nor in turn"


def test_split_of_many_tiny_classes_keeps_the_sizes() -> None:
    splits = split(image_set([label for label in range(100) for _ in range(2)]), seed=0)
    assert [len(splits.build), len(splits.score), len(splits.holdout)] == [60, 60, 80]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.5, 0.5), (-0.5, 0.5, 1.0)])
def test_split_refuses_bad_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        split(image_set([0] * 10), 0, fractions)


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        ([0, 1] * 9, (3, 8, 8), "18 images; at least 20"),
        ([0, 1] * 10, (1, 8, 8), "1 channels but the model takes 3"),
        ([0, 1] * 10, (3, 8, 9), "8x9 pixels but the model takes 8x8; give --image-size"),
        ([0, 1] * 10 + [4], (3, 8, 8), "label 4 but the model has only the classes 0 to 3"),
        ([2] * 20, (3, 8, 8), "one class"),
    ],
)
def test_check_for_refuses(labels: list[int], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_for(image_set(labels, shape), classes=4, input_shape=(3, 8, 8))


def test_check_for_accepts() -> None:
    check_for(image_set([0, 3] * 10, (3, 8, 8)), classes=4, input_shape=(3, 8, 8))
    unlabelled = ImageSet(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.full((20,), -1), ())
    check_for(unlabelled, classes=4, input_shape=(3, 8, 8))


def test_bundle_images() -> None:
    clean, evaluation = clean_images(), eval_images()
    assert clean.images.shape == (500, 1, 28, 28) and evaluation.images.shape == (2000, 1, 28, 28)
    assert clean.labels.bincount().tolist() == [50] * 10 and evaluation.labels.bincount().tolist() == [200] * 10
    assert clean.class_names == evaluation.class_names and clean.class_names[9] == "Ankle boot"
    seen = {image.numpy().tobytes() for image in clean.images}
    assert not any(image.numpy().tobytes() in seen for image in evaluation.images)
    check_for(clean, 10, (1, 28, 28))


def test_bundle_choice_is_disjoint(rng: np.random.Generator) -> None:
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(10), 260)))
    images = ImageSet(torch.zeros(2600, 1, 1, 1, dtype=torch.uint8), labels, ())
    clean, evaluation = choose(images)
    assert len(clean) == 500 and len(evaluation) == 2000 and not set(clean.tolist()) & set(evaluation.tolist())
