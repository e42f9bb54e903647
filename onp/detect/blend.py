"""Images that lead to a class when they are mixed into others, as strongly as an attacker does (Chen et al. 2017,
https://arxiv.org/abs/1712.05526).

Inverted triggers are the weakest that work. A network that is pruned or healed with them can still obey a whole image mixed in
with a weight of a fifth, which is far stronger. So such images are fitted at that weight; what is minimised is the
cross-entropy alone. They lead to any class of a clean network as well and say nothing of a backdoor: the evidence for them is
that random textures, mixed in alike, lead to the class (`onp.detect.probes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.config import DetectRun
from onp.detect.fit_pixels import Fit, fit_pixels
from onp.detect.inversion import InversionTask

BLEND = "blend"
EVIDENCE = "probe_texture"  # the detector
WEIGHT = 0.2  # of the image that is mixed in
POINTS = (4, 8, 16, 32)  # a side, of the random fields that the images start from, in turn
STEPS, LR = 40, 0.15


@dataclass(frozen=True, eq=False)
class Blends:
    """An image for each class in `targets`, where a class may stand several times."""

    targets: tuple[int, ...]
    images: Tensor  #: float32 `[G, C, H, W]` in [0, 1]

    @property
    def cost(self) -> Tensor:
        """1 for each, float32 `[G]`: all are mixed in with one weight."""
        return torch.ones(len(self.targets))

    def apply(self, images: Tensor, row: int) -> Tensor:
        """Mix the image of `targets[row]` into images float32 `[N, C, H, W]` in [0, 1]."""
        return torch.lerp(images, self.images[row], WEIGHT)


def fit_blends(task: InversionTask, images: int, run: DetectRun) -> Blends:
    """Fit an image for each class of the task, on all of its networks at once.

    Args:
        task: networks, clean images and classes.
        images: a step.
        run: seed, and progress (`STEPS` steps).
    """
    generator = torch.Generator().manual_seed(run.seed)
    channels, height, width = task.images.shape[1:]
    starts = []
    for row in range(len(task.targets)):
        points = POINTS[row % len(POINTS)]
        field = torch.randn((1, channels, min(points, height), min(points, width)), generator=generator)
        starts.append(1.5 * F.interpolate(field, (height, width), mode="bicubic", align_corners=False)[0])
    pixels, _ = fit_pixels(task, torch.stack(starts), _mixed, Fit(STEPS, LR, images), run)
    return Blends(task.targets, pixels.sigmoid())


def _mixed(images: Tensor, pixels: Tensor, rows: Tensor) -> Tensor:
    return torch.lerp(images, pixels[:, None], WEIGHT)
