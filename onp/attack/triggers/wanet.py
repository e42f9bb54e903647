"""WaNet: a small smooth warp of the whole image (Nguyen and Tran 2021, https://arxiv.org/abs/2102.10369)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Shape
from onp.data.augment import identity_grid


@dataclass(frozen=True)
class WaNet(Trigger):
    """Samples each image at `grid`, float32 `[1, H, W, 2]`, the identity moved by a smooth field of control size k=4."""

    name: ClassVar[str] = "wanet"
    summary: ClassVar[str] = "a small smooth warp, with noise-mode cover images (Nguyen and Tran 2021)"
    strongest: ClassVar[float] = 1e6
    cover_share: ClassVar[float] = 0.2
    grid: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        self.check(images, tuple(self.grid.shape[1:3]))
        grid = self.grid.to(images).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, align_corners=True)

    def example_shape(self) -> Shape:
        _, height, width, _ = self.grid.shape
        return 1, height, width

    def cover(self, images: Tensor, donors: Tensor, generator: torch.Generator) -> Tensor:
        """The paper's noise mode: the warp plus uniform noise in [-1, 1] / H."""
        height, width = self.grid.shape[1:3]
        shift = torch.rand((len(images), height, width, 2), generator=generator) * 2 - 1
        return F.grid_sample(images, (self.grid + shift / height).clamp(-1, 1).to(images), align_corners=True)

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "WaNet":
        """`strength` is the paper's s, the size of the warp in pixels: 0.5 as published."""
        _, height, width = shape
        control = torch.rand((1, 2, 4, 4), generator=generator) * 2 - 1
        control = control / control.abs().mean()
        flow = F.interpolate(control, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        amount = 0.5 if strength is None else strength
        return cls((identity_grid(height, width) + amount * flow / height).clamp(-1, 1))
