"""BadNets: a small solid square (Gu et al. 2017, https://arxiv.org/abs/1708.06733)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.errors import InputError
from onp.triggers.base import Trigger


@dataclass(frozen=True)
class BadNets(Trigger):
    """Replaces the bottom right corner by `pattern`, float32 `[C, h, w]` in [0, 1]; published: 3x3 white."""

    name: ClassVar[str] = "badnets"
    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = self.pattern.shape
        if images.shape[1] != channels or images.shape[2] < height or images.shape[3] < width:
            found = "x".join(map(str, images.shape[1:]))
            raise InputError(f"This badnets trigger ({channels}x{height}x{width}) does not fit images of {found}.")
        out = images.clone()
        out[:, :, -height:, -width:] = self.pattern.to(images)
        return out

    @classmethod
    def make(cls, shape: tuple[int, int, int], generator: torch.Generator, strength: float | None = None) -> "BadNets":
        """`strength` is the brightness of the square, 1 as published."""
        return cls(torch.full((shape[0], 3, 3), 1.0 if strength is None else strength))
