"""Whether a network is clearly better with another known normalisation of its images than with the one that was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.data.normalisation import PRESETS, Normalisation
from onp.engine.metrics import lower_bound, predictions
from onp.model.victim import Victim

FIRST_LOOK = (16, 64, 2**18)  # images for each normalisation: least, most, and pixels of all together
SECOND_LOOK = (100, 500, 2**22)  # for the best one of the first look
CONFIDENCE = 0.99  # of each bound
GAIN = 0.03  # least gain of accuracy by its lower bound; presets of similar sets, such as cifar10 and cifar100, differ by less


@dataclass(frozen=True)
class Comparison:
    """The accuracies on the same images, shares."""

    given: float
    other: float
    preset: str  #: name of the other one


def better_normalisation(victim: Victim, images: ImageSet, predicted: Tensor) -> Comparison | None:
    """A preset with which the network is clearly right on more images, by the lower confidence bound of the gain.

    Args:
        victim: with the normalisation that was given.
        images: clean ones, labelled as the network counts; some of each class are looked at.
        predicted: int64 `[N]`, with that normalisation.

    Returns:
        None where no preset is clearly better.
    """
    right = predicted == images.labels
    if 1 - float(right.float().mean()) < GAIN:
        return None
    first, second = few_of(images, *FIRST_LOOK), few_of(images, *SECOND_LOOK)
    shares = {name: _right(victim, images.subset(first), name).float().mean() for name in presets_for(victim)}
    if not shares:
        return None
    best = max(shares, key=shares.__getitem__)
    if shares[best] <= right[first].float().mean():
        return None
    given, other = right[second], _right(victim, images.subset(second), best)
    better, worse, n = int((other & ~given).sum()), int((given & ~other).sum()), len(second)
    gain = lower_bound(better, n, CONFIDENCE) - (1 - lower_bound(n - worse, n, CONFIDENCE))
    return Comparison(float(given.float().mean()), float(other.float().mean()), best) if gain >= GAIN else None


def presets_for(victim: Victim) -> Iterator[str]:
    """The presets that images of the victim's channels can have, without the one that was given."""
    for name in PRESETS:
        normalisation = Normalisation.parse(name)
        if normalisation != victim.normalisation and len(normalisation.mean) in (1, victim.input_shape[0]):
            yield name


def name_of(normalisation: Normalisation) -> str:
    """The name of the preset, or MEAN/STD."""
    return next((name for name, values in PRESETS.items() if Normalisation(*values) == normalisation), str(normalisation))


def few_of(images: ImageSet, least: int, most: int, pixels: int) -> Tensor:
    """Positions of some images of each class: as many as have so many pixels together, between `least` and `most`."""
    height, width = images.images.shape[2:]
    return spread(images.labels)[: max(least, min(most, pixels // (height * width)))]


def spread(labels: Tensor) -> Tensor:
    """The positions of all images, one of each class first, then a second one of each, and so on."""
    rank = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    return rank.argsort(stable=True)


def predicted_with(victim: Victim, images: ImageSet, normalisation: Normalisation) -> Tensor:
    """int64 `[N]` on the CPU."""
    return predictions(victim.model, normalisation(images.pixels().to(victim.device))).cpu()


def _right(victim: Victim, images: ImageSet, preset: str) -> Tensor:
    return predicted_with(victim, images, Normalisation.parse(preset)) == images.labels
