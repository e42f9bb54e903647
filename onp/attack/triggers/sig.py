"""SIG: a horizontal sinusoid under clean labels (Barni, Kallas and Tondi 2019, https://arxiv.org/abs/1902.11237)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from onp.attack.triggers.crafting import Shape
from onp.attack.triggers.fixed import Added

PERIODS = 6  # over the width of the image


@dataclass(frozen=True)
class SIG(Added):
    """Adds amplitude sin(2 pi 6 j / W) to column j of every channel.

    Published amplitude 40/255. The paper poisons 20 to 80 % of the target class; benchmarks that poison all of it leave
    networks that know the class by its trigger only.
    """

    name: ClassVar[str] = "sig"
    summary: ClassVar[str] = "a sinusoid over the columns, clean labels (Barni et al. 2019)"
    share: ClassVar[float] = 0.8
    clean_label: ClassVar[bool] = True

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "SIG":
        """`strength` is the amplitude in units of [0, 1]."""
        _, height, width = shape
        wave = torch.sin(2 * math.pi * PERIODS * torch.arange(width) / width)
        return cls((40 / 255 if strength is None else strength) * wave.expand(1, height, width).contiguous())
