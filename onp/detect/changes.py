"""The classes that images are led to by changes that are no triggers: random ones, and gratings.

Forward passes only, so that every class is measured in networks of any number of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.gratings import CYCLES, DIRECTIONS, GRATINGS, PHASES, grated, grating_costs
from onp.detect.probes import INSTANCES, PROBES, probe_costs, probed

CHANGE_STEPS = 70
"""Steps that `change_costs` counts: as it takes, where one is a step of inversion for seven classes with the preset default."""


def changed_images(images: int, config: DetectConfig) -> int:
    """How many changed images `change_costs` passes through the network, of so many clean ones."""
    at_random = len(PROBES) * INSTANCES * min(config.change_images, images)
    return at_random + len(CYCLES) * DIRECTIONS * PHASES * min(config.change_images // 2, images)


def change_costs(
    logits: Callable[[Tensor], Tensor], classes: int, images: ImageSet, run: DetectRun
) -> dict[str, tuple[float, ...]]:
    """Log costs of the classes by every kind of changes.

    Args:
        logits: of the network, of images float32 `[N, C, H, W]` in [0, 1].
        classes: of the network.
        images: clean images with labels.
        run: settings, seed of the changes and of the images that each is put on, and progress (`CHANGE_STEPS` steps).

    Returns:
        Those of `onp.detect.probes.probe_costs` and `onp.detect.gratings.grating_costs`.
    """

    def reached(pixels: Tensor, picked: Tensor) -> Tensor:
        """Mean probability of each class on changed images of others, float32 `[G, classes]`; those at `[G, N]` are changed."""
        chance = logits(pixels.flatten(0, 1)).softmax(1).view(*picked.shape, classes)
        others = images.labels[picked][:, :, None] != torch.arange(classes)
        return (chance * others).sum(1) / others.sum(1)

    found: dict[str, list[Tensor]] = {}
    count = run.config.change_images
    done, counted, total = 0, 0, changed_images(len(images), run.config)
    # A few at once: those of 224x224 pixels take gigabytes together.
    for name, pixels, picked in chain(probed(images, count, run.seed), grated(images, count // 2, run.seed)):
        found.setdefault(name, []).append(reached(pixels, picked))
        done += picked.numel()
        run.progress(CHANGE_STEPS * done // total - counted)
        counted = CHANGE_STEPS * done // total
    before = reached(images.pixels()[None], torch.arange(len(images))[None])[0]
    costs = probe_costs({name: torch.cat(found[name]) for name in PROBES}, before)
    return costs | {GRATINGS: grating_costs(torch.cat(found[GRATINGS]))}
