"""Blended: a whole image mixed in faintly (Chen et al. 2017, https://arxiv.org/abs/1712.05526)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Shape


@dataclass(frozen=True)
class Blended(Trigger):
    """x' = (1 - alpha) x + alpha pattern; `pattern` is float32 `[C, H, W]` in [0, 1], here uniform noise; alpha 0.2."""

    name: ClassVar[str] = "blended"
    summary: ClassVar[str] = "a whole image (uniform noise) mixed in with weight 0.2 (Chen et al. 2017)"
    pattern: Tensor
    alpha: float

    def __call__(self, images: Tensor) -> Tensor:
        self.check(images, tuple(self.pattern.shape))
        return torch.lerp(images, self.pattern.to(images), self.alpha)

    def example_shape(self) -> Shape:
        channels, height, width = self.pattern.shape
        return channels, height, width

    def check_amplitude(self) -> None:
        self.check_strength(self.alpha)

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "Blended":
        """`strength` is alpha."""
        return cls(torch.rand(shape, generator=generator), 0.2 if strength is None else strength)
