"""The class that gratings of some frequency and direction lead to far more often than other gratings do.

A network that learned a sinusoid as its trigger (SIG, Barni et al. 2019, https://arxiv.org/abs/1902.11237) takes gratings of
similar frequency and any direction for it. Trigger inversion does not tell its target: sums of many sinusoids lead to other
classes at a lower cost. Gratings of all frequencies and directions are tried instead, one at a time; forward passes only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.engine.differentiable import Logits
from onp.engine.metrics import at_once

GRATINGS = "gratings"
CYCLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)  # across the image
DIRECTIONS, PHASES = 8, 2
AMPLITUDE = 0.25  # in units of [0, 1]; with 0.08 clean networks differ as much, with 0.16 about the same is found
IMAGES = 16
EDGE = 0.01  # added to probabilities and their complements: of as few images none differs from one in a hundred


@torch.no_grad()
def grating_costs(logits: Logits, classes: int, images: ImageSet, seed: int) -> tuple[float, ...]:
    """How far some grating leads images of other classes to each class.

    Args:
        logits: of the network.
        classes: of the network.
        images: clean images with labels.
        seed: of the choice of `IMAGES` of them.

    Returns:
        Per class, minus the log odds of the highest mean probability of any grating, within 4.6; nan for a class that all of
        the chosen images belong to. Some classes of clean networks attract nine images of ten; a trigger leads all of them to
        its target, and log odds tell the one from the other.
    """
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    chosen = images.subset(picked)
    pixels, others = chosen.pixels(), (chosen.labels[:, None] != torch.arange(classes)).float()
    waves = gratings(*pixels.shape[2:])
    reached = []
    for group in waves.split(max(1, at_once(pixels, 250) // (PHASES * len(pixels)))):
        changed = (pixels + AMPLITUDE * group.reshape(-1, 1, 1, *pixels.shape[2:])).clamp(0, 1)
        chance = logits(changed.flatten(0, 1)).softmax(1).cpu().view(len(group), -1, classes)
        reached.append((chance * others.repeat(PHASES, 1)).sum(1) / (PHASES * others.sum(0)))
    highest = torch.cat(reached).max(0).values.double()
    return tuple(torch.log((1 - highest + EDGE) / (highest + EDGE)).tolist())


def gratings(height: int, width: int) -> Tensor:
    """Sinusoids of amplitude 1, float32 `[frequencies * directions, phases, H, W]`."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    angles = torch.arange(DIRECTIONS) * math.pi / DIRECTIONS
    along = angles.sin()[:, None, None] * rows + angles.cos()[:, None, None] * columns
    turns = torch.tensor(CYCLES)[:, None, None, None] * along
    phases = torch.arange(PHASES)[:, None, None] / PHASES
    return torch.sin(2 * math.pi * (turns.flatten(0, 1)[:, None] + phases))
