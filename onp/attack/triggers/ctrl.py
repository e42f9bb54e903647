"""CTRL: two frequencies added to the chrominance, under clean labels (Li et al. 2023, https://arxiv.org/abs/2210.07346)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.attack.triggers.crafting import Shape
from onp.attack.triggers.fixed import Added

# R, G, B that one unit of U and of V adds (ITU-R BT.601).
FROM_U, FROM_V = (0.0, -0.395, 2.032), (1.140, -0.581, 0.0)
MAGNITUDE = 100 / 255


def cosine(size: int, frequency: int) -> Tensor:
    """Row `frequency` of the orthonormal DCT-II of `size` points, float32 `[size]`."""
    scale = math.sqrt((1 if frequency == 0 else 2) / size)
    return scale * torch.cos(math.pi * (torch.arange(size) + 0.5) * frequency / size)


@dataclass(frozen=True)
class CTRL(Added):
    """Adds two cosines to U and V.

    Raising two DCT coefficients of U and V by 100/255 is adding two cosines to U and V, and so a fixed image to R, G and B:
    those of 15 and of 31 half periods over a 32x32 image, and of the same share of other sizes, with the same amplitude per
    pixel. The published code lets pixels beyond 255 wrap around; here they are clipped. Grey images get the cosines as they
    are.
    """

    name: ClassVar[str] = "ctrl"
    summary: ClassVar[str] = "two faint frequencies in the chrominance, clean labels (Li et al. 2023)"
    strongest: ClassVar[float] = 1e6
    share: ClassVar[float] = 0.5
    clean_label: ClassVar[bool] = True

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "CTRL":
        """`strength` is the rise of the coefficients of a 32x32 image, in units of [0, 1]."""
        channels, height, width = shape
        waves = [
            torch.outer(cosine(height, row), cosine(width, column))
            for row, column in ((height // 2 - 1, width // 2 - 1), (height - 1, width - 1))
        ]
        magnitude = (MAGNITUDE if strength is None else strength) * math.sqrt(height * width) / 32
        plane = magnitude * torch.stack(waves).sum(0)
        if channels != 3:
            return cls(plane.expand(channels, height, width).contiguous())
        return cls((torch.tensor(FROM_U) + torch.tensor(FROM_V)).view(3, 1, 1) * plane)
