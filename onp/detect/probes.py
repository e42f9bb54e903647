"""Probes: the classes that clean images are led to by random changes of four declared kinds.

A backdoor answers to changes of its trigger's kind that are not its trigger (as `augmentation_bias` reads from slight ones):
its target attracts images under some random field, warp or colour curve, other classes seldom. Forward passes only, so that
every class is probed in networks of any number of classes, and triggers that are hard to invert are reached too: fields without
fine detail (https://arxiv.org/abs/2104.03413), warps (https://arxiv.org/abs/2102.10369), and filters and quantised colours
(https://arxiv.org/abs/2205.13383). Sinusoids are tried one by one, see `onp.detect.gratings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.data.augment import identity_grid
from onp.data.images import ImageSet
from onp.engine.metrics import at_once

INSTANCES = 24  # random changes of each kind

Change = Callable[[Tensor, torch.Generator], Tensor]
"""Images float32 `[N, C, H, W]` in [0, 1] and a generator of one draw to changed images, before they are clipped."""


def field(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random field without fine detail, of 2 to 8 points a side and root mean square 0.05 to 0.25."""
    points, size = int(torch.randint(2, 9, (1,), generator=generator)), _uniform(generator, 0.05, 0.25)
    return images + (size * _field(images, images.shape[1], points, generator)).to(images)


def texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """A blend of 10 to 30 % with a random texture of any coarseness."""
    share, points = _uniform(generator, 0.1, 0.3), int(2 ** _uniform(generator, 2, 5))
    pattern = (0.5 + 0.5 * _field(images, images.shape[1], points, generator)).clamp(0, 1).to(images)
    return (1 - share) * images + share * pattern


def warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """A displacement of 1 to 5 % of the image's size (root mean square), from a field of 3 to 8 points a side."""
    height, width = images.shape[2:]
    points, size = int(torch.randint(3, 9, (1,), generator=generator)), _uniform(generator, 0.01, 0.05)
    shift = 2 * size * _field(images, 2, points, generator).permute(0, 2, 3, 1)
    grid = (identity_grid(height, width) + shift).to(images).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, align_corners=True, padding_mode="border")


def colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another colour curve in each channel (gain, offset and gamma), channels mixed, half of the time with 3 to 8 levels."""
    channels = images.shape[1]
    gain, offset, gamma = (torch.randn((3, channels, 1, 1), generator=generator) * 0.25).to(images)
    mixed = torch.eye(channels) + 0.15 * torch.randn((channels, channels), generator=generator)
    curved = (images.clamp(0, 1) ** torch.exp(2 * gamma)) * torch.exp(gain) + 0.5 * offset
    curved = torch.einsum("ij,njhw->nihw", mixed.to(images), curved).clamp(0, 1)
    levels = int(torch.randint(3, 9, (1,), generator=generator)) - 1
    return (curved * levels).round() / levels if _uniform(generator, 0, 1) < 0.5 else curved


@dataclass(frozen=True)
class Probe:
    """A kind of random changes."""

    change: Change
    highest: int  #: instances that count for a class: those that lead most images to it


PROBES: dict[str, Probe] = {
    "probe_field": Probe(field, 1),
    "probe_texture": Probe(texture, 1),
    "probe_warp": Probe(warp, 1),
    "probe_colours": Probe(colours, INSTANCES),  # any colour curve moves a network without a backdoor; few move it each time
}


def probed(images: ImageSet, count: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`INSTANCES` random changes of each kind, each put on `count` images; as many together as memory bears.

    Args:
        images: clean images.
        count: of them, at most, that each change is put on.
        seed: of the changes, and of the images that each is put on.

    Yields:
        The kind, changed images float32 `[G, N, C, H, W]` in [0, 1], and the places of the unchanged ones, int64 `[G, N]`.
    """
    together = max(1, at_once(images.images, INSTANCES * count) // min(count, len(images)))
    for name, probe in PROBES.items():
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, INSTANCES, together):
            changed, places = [], []
            for _ in range(min(together, INSTANCES - start)):
                picked = torch.randperm(len(images), generator=generator)[:count]
                changed.append(probe.change(images.subset(picked).pixels(), generator).clamp(0, 1))
                places.append(picked)
            yield name, torch.stack(changed), torch.stack(places)


def probe_costs(probability: dict[str, Tensor], before: Tensor) -> dict[str, tuple[float, ...]]:
    """How far each kind of random changes leads images of other classes to each class.

    Args:
        probability: per kind float32 `[INSTANCES, classes]`, the mean over images of other classes; nan where there are none.
        before: the same of unchanged images, float32 `[classes]`.

    Returns:
        per kind (`PROBES`) and class, minus the rise of the square root of the mean probability, which differs between classes
        of clean networks as much for high as for low probabilities: -1 to 1. nan where the probability is.
    """
    costs = {}
    for name, reached in probability.items():
        highest = reached.sqrt().sort(0, descending=True).values[: PROBES[name].highest].mean(0)
        costs[name] = tuple((before.sqrt() - highest).double().tolist())
    return costs


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _field(images: Tensor, channels: int, points: int, generator: torch.Generator) -> Tensor:
    """A random field of root mean square 1, float32 `[1, channels, H, W]`, interpolated from `points` a side."""
    control = torch.randn((1, channels, points, points), generator=generator)
    values = F.interpolate(control, images.shape[2:], mode="bicubic", align_corners=True)
    return values / values.square().mean().sqrt()
