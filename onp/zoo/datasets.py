"""The data sets of a zoo: photographs that the user has, and drawn ones that are made here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from onp.data.images import ImageSet, load_images
from onp.errors import InputError
from onp.zoo.glyphs import glyphs
from onp.zoo.shapes import shapes

TEST_IMAGES = 300  # of a drawn set, for each class


@dataclass(frozen=True)
class DataSet:
    """What the distribution knows of a data set."""

    classes: int
    fewest: int  #: classes that a network tells apart; a random choice of as many as are drawn uniformly from here on
    channels: int
    images: int  #: for training
    norms: tuple[str, ...]  #: normalisations that networks of it are trained with
    mirrored: bool  #: whether a mirrored image is still of its class
    coloured: bool  #: whether colours are those of things, so that a filter of them can be seen
    draw: Callable[[int, int], ImageSet] | None = None  #: from a number of images and a seed; None: read from files


DATASETS = {
    "cifar10": DataSet(10, 10, 3, 50_000, ("cifar10", "half", "imagenet"), True, True),
    "fashion": DataSet(10, 10, 1, 60_000, ("fashion-mnist", "half", "none"), True, False),
    "gtsrb": DataSet(43, 25, 3, 25_087, ("gtsrb", "half", "none"), False, True),
    "glyphs": DataSet(36, 10, 1, 20_000, ("half", "mnist"), False, False, glyphs),
    "shapes": DataSet(20, 10, 3, 16_000, ("half", "none", "cifar10"), True, False, shapes),
}


def files_of(given: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Training and test images by data set, from "NAME=TRAIN,TEST".

    Raises:
        InputError: something else is given.
    """
    read = [name for name, data in DATASETS.items() if data.draw is None]
    found = {}
    for text in given:
        name, equals, paths = text.partition("=")
        train, comma, test = paths.partition(",")
        if name not in read or not equals or not train or not comma or not test:
            raise InputError(f"'{text}' is no data set; write NAME=TRAIN,TEST with NAME one of {', '.join(read)}.")
        found[name] = (train, test)
    return found


def available(files: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """The data sets at hand: those with files and the drawn ones."""
    return tuple(name for name, data in DATASETS.items() if data.draw is not None or name in files)


@cache
def _whole(name: str, part: str, path: str) -> ImageSet:
    """A part of a data set, read or drawn once in a process."""
    data = DATASETS[name]
    if data.draw is None:
        return load_images(path)
    return data.draw(data.images, 0) if part == "train" else data.draw(TEST_IMAGES * data.classes, 1)


def images_of(name: str, part: str, labels: Sequence[int], path: str = "") -> ImageSet:
    """The images of some classes, which are counted anew from 0 on.

    Args:
        name: of the data set.
        part: "train" or "test".
        labels: the classes, ascending.
        path: of its file; "" for drawn ones.

    Raises:
        InputError: the file cannot be used.
    """
    whole = _whole(name, part, path)
    chosen = torch.tensor(labels)
    if int(chosen.max()) >= len(whole.class_names):
        raise InputError(f"{path} has {len(whole.class_names)} classes, not the {DATASETS[name].classes} of {name}.")
    kept = torch.isin(whole.labels, chosen).nonzero().flatten()
    some = whole.subset(kept)
    numbers = torch.searchsorted(chosen, some.labels)
    return dataclasses.replace(some, labels=numbers, class_names=tuple(whole.class_names[label] for label in labels))


def drawn(images: ImageSet, count: int, seed: int, imbalance: float = 1.0) -> ImageSet:
    """A random choice of images.

    Args:
        images: to choose from.
        count: at most so many.
        seed: of the choice.
        imbalance: the rarest class keeps this share of what the most frequent one keeps; the others lie between.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = len(images.class_names)
    share = imbalance ** (torch.randperm(classes, generator=generator) / max(1, classes - 1))
    order = torch.randperm(len(images), generator=generator)
    kept = order[torch.rand(len(images), generator=generator) < share[images.labels[order]]]
    return images.subset(kept[:count])
