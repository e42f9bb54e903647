"""The class that gratings of some frequency and direction lead to far more often than other gratings do.

A network that learned a sinusoid as its trigger (SIG, Barni et al. 2019, https://arxiv.org/abs/1902.11237) takes gratings of
similar frequency and any direction for it. Trigger inversion does not tell its target: sums of many sinusoids lead to other
classes at a lower cost. Gratings of all frequencies and directions are tried instead, one at a time; forward passes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.engine.metrics import at_once

GRATINGS = "gratings"
CYCLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)  # across the image
DIRECTIONS, PHASES = 8, 2
AMPLITUDE = 0.25  # in units of [0, 1]; with 0.08 clean networks differ as much, with 0.16 about the same is found


def grated(images: ImageSet, count: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`count` of the images under every grating.

    Args:
        images: clean images.
        count: of them, at most.
        seed: of the choice among them.

    Yields:
        `GRATINGS`, changed images float32 `[G, N, C, H, W]` in [0, 1] of some gratings in all phases, and the places of the
        unchanged ones, int64 `[G, N]`.
    """
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    pixels = images.subset(picked).pixels()
    waves = gratings(*pixels.shape[2:])
    for group in waves.split(max(1, at_once(pixels, 250) // (PHASES * len(pixels)))):
        changed = (pixels + AMPLITUDE * group.reshape(-1, 1, 1, *pixels.shape[2:])).clamp(0, 1)
        yield GRATINGS, changed.view(len(group), -1, *pixels.shape[1:]), picked.repeat(len(group), PHASES)


def gratings(height: int, width: int) -> Tensor:
    """Sinusoids of amplitude 1, float32 `[frequencies * directions, phases, H, W]`."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    angles = torch.arange(DIRECTIONS) * math.pi / DIRECTIONS
    along = angles.sin()[:, None, None] * rows + angles.cos()[:, None, None] * columns
    turns = torch.tensor(CYCLES)[:, None, None, None] * along
    phases = torch.arange(PHASES)[:, None, None] / PHASES
    return torch.sin(2 * math.pi * (turns.flatten(0, 1)[:, None] + phases))
