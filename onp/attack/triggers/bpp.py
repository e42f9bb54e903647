"""BPP: fewer grey levels, with dithering (Wang, Zhai and Ma 2022, https://arxiv.org/abs/2205.13383)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Shape
from onp.errors import InputError

LEVELS = 8


def quantise(images: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` evenly spaced values in [0, 1]."""
    return (images * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1)


def floyd_steinberg(images: Tensor, levels: int) -> Tensor:
    """`quantise` in reading order, where each pixel hands its rounding error on to its later neighbours (Floyd and
    Steinberg 1976); float32 `[N, C, H, W]` to the same shape.

    Pixels with one value of column + 2 row do not depend on each other and are done at once.
    """
    height, width = images.shape[2:]
    # A column on either side and a row below take the errors that leave the image.
    work = torch.nn.functional.pad(images, (1, 1, 0, 1)).clone()
    for time in range(width + 2 * (height - 1)):
        row = torch.arange(max(0, (time - width + 2) // 2), min(height - 1, time // 2) + 1, device=images.device)
        column = time - 2 * row + 1
        old = work[:, :, row, column]
        new = quantise(old, levels)
        error = (old - new) / 16
        work[:, :, row, column] = new
        work[:, :, row, column + 1] += 7 * error
        work[:, :, row + 1, column - 1] += 3 * error
        work[:, :, row + 1, column] += 5 * error
        work[:, :, row + 1, column + 1] += error
    return work[:, :, :-1, 1:-1].contiguous()


@dataclass(frozen=True)
class BPP(Trigger):
    """x' = x at `levels` values a channel, 8 as published, dithered as in the paper.

    Cover images carry what the trigger changed in another image and keep their label (the paper's negative samples).
    """

    name: ClassVar[str] = "bpp"
    summary: ClassVar[str] = "8 grey levels a channel, dithered, with negative cover images (Wang et al. 2022)"
    cover_share: ClassVar[float] = 0.1
    levels: int
    dither: bool

    def __call__(self, images: Tensor) -> Tensor:
        return floyd_steinberg(images, self.levels) if self.dither else quantise(images, self.levels)

    def check_amplitude(self) -> None:
        self.check_strength(self.levels)

    def cover(self, images: Tensor, donors: Tensor, generator: torch.Generator) -> Tensor:
        return (images + self(donors) - donors).clamp(0, 1)

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "BPP":
        """`strength` is the number of levels."""
        if strength is not None:
            cls.check_strength(strength)
        return cls(LEVELS if strength is None else round(strength), True)

    @classmethod
    def check_strength(cls, strength: float) -> None:
        if not 2 <= strength <= 255:
            raise InputError(f"--strength of bpp is the number of levels, 2 to 255, not {strength}.")
