"""The classes that images are led to by changes that are no triggers: random ones, and gratings.

Forward passes only, so that every class is measured in networks of any number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.detect.gratings import GRATINGS, grated, grating_costs
from onp.detect.probes import PROBES, probe_costs, probed
from onp.detect.separability import Latent

PROBE_SEPARABILITY = "probe_separability"
SEPARATED = (GRATINGS, "probe_field", "probe_texture", "probe_colours")
"""Changes whose features are compared with those of the classes; warps lead few images anywhere."""

Read = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Images float32 `[N, C, H, W]` in [0, 1] to logits and last features, see `onp.detect.last_features.Reader.read`."""


@dataclass(frozen=True, eq=False)
class Reached:
    """Where some changes of one kind lead images of other classes; G changes."""

    probability: Tensor  #: float32 `[G, classes]`, the mean over the images; nan for a class that all images belong to
    similarity: Tensor | None  #: float32 `[G, classes]`, of what it adds to the features, see `Latent.similarities`


def change_costs(
    read: Read, classes: int, images: ImageSet, seed: int, latent: Latent | None = None
) -> dict[str, tuple[float, ...]]:
    """Log costs of the classes by every kind of changes.

    Args:
        read: the network.
        classes: of the network.
        images: clean images with labels.
        seed: of the changes, and of the images that each is put on.
        latent: features of clean images, those of `images` first.

    Returns:
        Those of `onp.detect.probes.probe_costs` and `onp.detect.gratings.grating_costs`; with `latent` also, per class, minus
        the highest p^2 (1 - s) of any change, where p is the mean probability that it leads to and s the similarity of what it
        adds to the features of these images to what tells the class from others; nan for a class with few images.
    """
    found: dict[str, list[Reached]] = {}
    for name, pixels, picked in [*probed(images, seed), *grated(images, seed)]:
        found.setdefault(name, []).append(_reached(read, classes, images.labels, (pixels, picked), latent))
    chance = {name: torch.cat([each.probability for each in parts]) for name, parts in found.items()}
    before = _reached(read, classes, images.labels, (images.pixels()[None], torch.arange(len(images))[None])).probability[0]
    costs = probe_costs({name: chance[name] for name in PROBES}, before)
    costs[GRATINGS] = grating_costs(chance[GRATINGS])
    if latent is not None:
        costs[PROBE_SEPARABILITY] = _own_features(part for name in SEPARATED for part in found[name])
    return costs


def _own_features(parts: Iterable[Reached]) -> tuple[float, ...]:
    """Minus the highest p^2 (1 - s) per class."""
    shares = [part.probability.square() * (1 - part.similarity) for part in parts if part.similarity is not None]
    return tuple((-torch.cat(shares).max(0).values).double().tolist())


def _reached(read: Read, classes: int, labels: Tensor, changed: tuple[Tensor, Tensor], latent: Latent | None = None) -> Reached:
    """What changed images `[G, N, C, H, W]` are taken for; they are those at the places `[G, N]`."""
    pixels, picked = changed
    logits, features = read(pixels.flatten(0, 1))
    others = labels[picked][:, :, None] != torch.arange(classes)
    chance = logits.softmax(1).cpu().view(*picked.shape, classes) * others
    probability = chance.sum(1) / others.sum(1)
    if latent is None or features is None:
        return Reached(probability, None)
    moved = features.view(*picked.shape, -1) - latent.features[picked]
    similarity = [
        latent.similarities((weight.T @ change) / weight.sum(0).clamp_min(1e-9)[:, None])
        for weight, change in zip(chance, moved, strict=True)
    ]
    return Reached(probability, torch.stack(similarity))
