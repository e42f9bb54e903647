"""The classes that images are led to by changes that are no triggers: random ones, and gratings.

Forward passes only, so that every class is measured in networks of any number of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.detect.gratings import GRATINGS, grated, grating_costs
from onp.detect.probes import PROBES, probe_costs, probed


def change_costs(logits: Callable[[Tensor], Tensor], classes: int, images: ImageSet, seed: int) -> dict[str, tuple[float, ...]]:
    """Log costs of the classes by every kind of changes.

    Args:
        logits: of the network, of images float32 `[N, C, H, W]` in [0, 1].
        classes: of the network.
        images: clean images with labels.
        seed: of the changes, and of the images that each is put on.

    Returns:
        Those of `onp.detect.probes.probe_costs` and `onp.detect.gratings.grating_costs`.
    """

    def reached(pixels: Tensor, picked: Tensor) -> Tensor:
        """Mean probability of each class on changed images of others, float32 `[G, classes]`; those at `[G, N]` are changed."""
        chance = logits(pixels.flatten(0, 1)).softmax(1).view(*picked.shape, classes)
        others = images.labels[picked][:, :, None] != torch.arange(classes)
        return (chance * others).sum(1) / others.sum(1)

    found: dict[str, list[Tensor]] = {}
    # One kind after the other: those of 224x224 pixels take gigabytes together.
    for name, pixels, picked in chain(probed(images, seed), grated(images, seed)):
        found.setdefault(name, []).append(reached(pixels, picked))
    before = reached(images.pixels()[None], torch.arange(len(images))[None])[0]
    costs = probe_costs({name: torch.cat(found[name]) for name in PROBES}, before)
    return costs | {GRATINGS: grating_costs(torch.cat(found[GRATINGS]))}
