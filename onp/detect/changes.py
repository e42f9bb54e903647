"""The classes that images are led to by changes that are no triggers: random ones, gratings, and patches at every place.

Forward passes only, so that every class is measured in networks of any number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.detect.anomaly import log_odds_costs
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.gratings import CYCLES, DIRECTIONS, GRATINGS, PHASES, grated
from onp.detect.patch_sweep import PATCH_SWEEP, SWEPT, swept
from onp.detect.probes import INSTANCES, PROBES, probe_costs, probed
from onp.engine.differentiable import Logits

CHANGE_STEPS = 110
"""Steps that `change_costs` counts: as it takes, where one is a step of inversion for seven classes with the preset default."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What changes that are no triggers show of each class."""

    costs: dict[str, tuple[float, ...]]  #: log costs by every kind of changes
    sweep: Tensor  #: float32 `[SWEPT, classes]`, mean probability of each class under each patch of `onp.detect.patch_sweep`


def changed_images(images: int, config: DetectConfig) -> int:
    """How many changed images `change_costs` passes through the network, of so many clean ones."""
    at_random = len(PROBES) * INSTANCES * min(config.change_images, images)
    patched = SWEPT * min(_sweep_images(config), images)
    return at_random + patched + len(CYCLES) * DIRECTIONS * PHASES * min(config.change_images // 2, images)


def change_costs(logits: Logits, classes: int, images: ImageSet, run: DetectRun) -> Changes:
    """Log costs of the classes by every kind of changes.

    Args:
        logits: of the network, on the CPU.
        classes: of the network.
        images: clean images with labels.
        run: settings, seed of the changes and of the images that each is put on, and progress (`CHANGE_STEPS` steps).

    Returns:
        The costs are those of `onp.detect.probes.probe_costs`, and log odds under the strongest grating and patch.
    """
    found: dict[str, list[Tensor]] = {}
    count = run.config.change_images
    done, counted, total = 0, 0, changed_images(len(images), run.config)
    # A few at once: those of 224x224 pixels take gigabytes together.
    changed = chain(probed(images, count, run.seed), grated(images, count // 2, run.seed), _swept(images, run))
    for name, pixels, picked in changed:
        found.setdefault(name, []).append(_reached(logits, classes, images, pixels, picked))
        done += picked.numel()
        run.progress(CHANGE_STEPS * done // total - counted)
        counted = CHANGE_STEPS * done // total
    before = _reached(logits, classes, images, images.pixels()[None], torch.arange(len(images))[None])[0]
    reached = {name: torch.cat(parts) for name, parts in found.items()}
    costs = probe_costs({name: reached[name] for name in PROBES}, before)
    costs |= {name: log_odds_costs(reached[name].max(0).values) for name in (GRATINGS, PATCH_SWEEP)}
    return Changes(costs, reached[PATCH_SWEEP])


def sweep_of(logits: Logits, classes: int, images: ImageSet, run: DetectRun) -> Tensor:
    """`Changes.sweep` alone; nothing is counted as progress."""
    return torch.cat([_reached(logits, classes, images, pixels, picked) for _, pixels, picked in _swept(images, run)])


def _swept(images: ImageSet, run: DetectRun) -> Iterator[tuple[str, Tensor, Tensor]]:
    return swept(images, _sweep_images(run.config), run.seed)


def _sweep_images(config: DetectConfig) -> int:
    return -(-config.change_images // 5)


def _reached(logits: Logits, classes: int, images: ImageSet, pixels: Tensor, picked: Tensor) -> Tensor:
    """Mean probability of each class on changed images of others, float32 `[G, classes]`; those at `[G, N]` are changed."""
    chance = logits(pixels.flatten(0, 1)).softmax(1).view(*picked.shape, classes)
    others = images.labels[picked][:, :, None] != torch.arange(classes)
    return (chance * others).sum(1) / others.sum(1)
