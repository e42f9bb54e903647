"""The two ways in which one fixed pattern enters every image."""

from dataclasses import dataclass

from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Shape
from onp.errors import InputError


@dataclass(frozen=True)
class Added(Trigger):
    """x' = x + pattern, clipped to [0, 1]; `pattern` is float32 `[C, H, W]`, or `[1, H, W]` for every channel."""

    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        shape = tuple(self.pattern.shape)
        self.check(images, shape if shape[0] > 1 else shape[1:])
        return (images + self.pattern.to(images)).clamp(0, 1)

    def example_shape(self) -> Shape:
        channels, height, width = self.pattern.shape
        return channels, height, width


@dataclass(frozen=True)
class Stamped(Trigger):
    """Replaces the bottom right corner by `pattern`, float32 `[C, h, w]` in [0, 1]."""

    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = self.pattern.shape
        if images.shape[1] != channels or images.shape[2] < height or images.shape[3] < width:
            found = "x".join(map(str, images.shape[1:]))
            raise InputError(f"This {self.name} trigger ({channels}x{height}x{width}) does not fit images of {found}.")
        out = images.clone()
        out[:, :, -height:, -width:] = self.pattern.to(images)
        return out

    def example_shape(self) -> Shape:
        channels, height, width = self.pattern.shape
        return channels, height, width
