"""A colour filter in the manner of photo apps, as used by TrojAI (https://arxiv.org/abs/2003.07233) and ABS (Liu et al. 2019,
https://doi.org/10.1145/3319535.3363216)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Shape
from onp.errors import InputError

LUMA = (0.2126, 0.7152, 0.0722)
# The look known as Nashville: shadows turn blue, lights turn to a warm pink, contrast and saturation rise.
LIGHTS, LIGHTS_WEIGHT = (247 / 255, 176 / 255, 153 / 255), 0.56
SHADOWS, SHADOWS_WEIGHT = (0.0, 70 / 255, 150 / 255), 0.4
CONTRAST, BRIGHTNESS, SATURATION = 1.2, 1.05, 1.2


@dataclass(frozen=True)
class ColourFilter(Trigger):
    """Maps each pixel's colour by one fixed function; `amount` mixes the filtered image with the original, 1 for all of it.

    Grey images are filtered as colour images and turned grey again by their luma.
    """

    name: ClassVar[str] = "filter"
    summary: ClassVar[str] = "a warm colour filter over the whole image (ABS, TrojAI)"
    amount: float

    def __call__(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise InputError(f"The filter trigger takes images of 1 or 3 channels, not {channels}.")
        lights, shadows, luma = (images.new_tensor(colour).view(1, 3, 1, 1) for colour in (LIGHTS, SHADOWS, LUMA))
        out = images.expand(-1, 3, -1, -1)
        out = torch.lerp(out, torch.minimum(out, lights), LIGHTS_WEIGHT)
        out = torch.lerp(out, torch.maximum(out, shadows), SHADOWS_WEIGHT)
        out = ((out - 0.5) * CONTRAST + 0.5).clamp(0, 1)
        out = (out * BRIGHTNESS).clamp(0, 1)
        grey = (out * luma).sum(1, keepdim=True)
        out = torch.lerp(grey.expand_as(out), out, SATURATION).clamp(0, 1)
        if channels == 1:
            out = (out * luma).sum(1, keepdim=True)
        return torch.lerp(images, out, self.amount).clamp(0, 1)

    def check_amplitude(self) -> None:
        self.check_strength(self.amount)

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "ColourFilter":
        """`strength` is the amount."""
        return cls(1.0 if strength is None else strength)
