"""Surrogate trigger families: parametric triggers that can be inverted from clean images.

A family holds one trigger per candidate class: a patch (Neural Cleanse, Wang et al. 2019,
https://doi.org/10.1109/SP.2019.00031), a universal perturbation (as in I-BAU, https://arxiv.org/abs/2110.03735), a
low-frequency perturbation (Zeng et al. 2021, https://arxiv.org/abs/2104.03413) and a warp (as in WaNet,
https://arxiv.org/abs/2102.10369). `onp.detect.inversion` optimises their parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.data.augment import identity_grid

CONTROL = 8  # points a side of the control fields that low-frequency triggers and warps are interpolated from


class Family(ABC):
    """Universal triggers of one kind, one per row of its parameters.

    `parameters` is a tuple of float32 tensors whose first dimension is the number of triggers G.
    """

    name: ClassVar[str]
    parameter_names: ClassVar[tuple[str, ...]]
    lr: ClassVar[float]  # Adam step, in the units of the parameters
    weight: ClassVar[float]  # initial weight of the cost against the cross-entropy

    @abstractmethod
    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Parameters of `count` triggers for images of `shape` (C, H, W)."""

    @abstractmethod
    def apply(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        """Put trigger g on `images[g]`: float32 `[G, N, C, H, W]` in [0, 1] to the same shape."""

    @abstractmethod
    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        """Size of each trigger, float32 `[G]`, in the unit that the class docstring names."""

    @abstractmethod
    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        """The same triggers at `factor` (`[G]`, at least 1) times the cost, as far as the family reaches."""


class Patch(Family):
    """A pattern seen through a mask, x' = (1 - m) x + m p; cost: the sum of m, in pixels."""

    name = "patch"
    parameter_names = ("mask", "pattern")
    lr = 0.3
    weight = 0.01

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        channels, height, width = shape
        mask = torch.randn((count, 1, height, width), generator=generator) * 0.1 - 1.0
        return mask, torch.randn((count, channels, height, width), generator=generator) * 0.5

    def apply(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        mask, pattern = (torch.sigmoid(value)[:, None] for value in parameters)
        return images + mask * (pattern - images)

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return torch.sigmoid(parameters[0]).sum((1, 2, 3))

    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        mask = torch.sigmoid(parameters[0]) * factor.view(-1, 1, 1, 1)
        return torch.logit(mask.clamp(1e-4, 1 - 1e-4)), parameters[1]


class Perturbation(Family):
    """A universal perturbation, x' = clip(x + d); cost: the L2 norm of d, pixels in [0, 1]."""

    name = "perturbation"
    parameter_names = ("image",)
    lr = 0.05
    weight = 0.03

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn((count, *shape), generator=generator) * 0.02,)

    def image(self, parameters: tuple[Tensor, ...], height: int, width: int) -> Tensor:
        """d of each trigger, float32 `[G, C, height, width]`."""
        return parameters[0]

    def apply(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        return (images + self.image(parameters, *images.shape[-2:])[:, None]).clamp(0, 1)

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return parameters[0].flatten(1).norm(dim=1)

    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        return (parameters[0] * factor.view(-1, 1, 1, 1),)


class LowFrequency(Perturbation):
    """A universal perturbation without fine detail, x' = clip(x + d), d interpolated from an 8x8 control field.

    Cost: the root mean square of the field, pixels in [0, 1]. A low-frequency trigger is larger than the universal
    perturbations that lead to any class; compared with other low-frequency ones it is cheap.
    """

    name = "low_frequency"
    parameter_names = ("field",)
    lr = 0.02
    weight = 1.5

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn((count, shape[0], CONTROL, CONTROL), generator=generator) * 0.02,)

    def image(self, parameters: tuple[Tensor, ...], height: int, width: int) -> Tensor:
        return _interpolated(parameters[0], height, width)

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return (parameters[0].square().mean((1, 2, 3)) + 1e-8).sqrt()


class Warp(Family):
    """A displacement of every pixel by at most 2 pixels, interpolated from an 8x8 control field.

    Cost: the root mean square of the displacement, in pixels.
    """

    name = "warp"
    parameter_names = ("field",)
    lr = 0.1  # at 0.3 the first steps overshoot to where tanh is flat, and no smaller warp is found again
    weight = 0.3
    maximum = 2.0  # pixels

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn((count, 2, CONTROL, CONTROL), generator=generator) * 0.3,)

    def flow(self, parameters: tuple[Tensor, ...], height: int, width: int) -> Tensor:
        """Displacement float32 `[G, 2, H, W]` in pixels."""
        return _interpolated(self.maximum * torch.tanh(parameters[0]), height, width)

    def apply(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        groups, count, channels, height, width = images.shape
        scale = torch.tensor([2 / (width - 1), 2 / (height - 1)], device=images.device)
        shift = self.flow(parameters, height, width).permute(0, 2, 3, 1) * scale
        grid = (identity_grid(height, width).to(images) + shift)[:, None].expand(-1, count, -1, -1, -1)
        warped = F.grid_sample(images.flatten(0, 1), grid.flatten(0, 1), align_corners=True, padding_mode="border")
        return warped.view(groups, count, channels, height, width)

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return (2 * (self.maximum * torch.tanh(parameters[0])).square().mean((1, 2, 3)) + 1e-8).sqrt()

    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        return (torch.atanh((torch.tanh(parameters[0]) * factor.view(-1, 1, 1, 1)).clamp(-0.999, 0.999)),)


def _interpolated(control: Tensor, height: int, width: int) -> Tensor:
    """Bicubic interpolation of a field `[..., 8, 8]` to `[..., height, width]`.

    As two matrix products, whose gradient is repeatable on a GPU too.
    """
    return _weights(height, control.device) @ control @ _weights(width, control.device).T


@cache
def _weights(size: int, device: torch.device) -> Tensor:
    """Bicubic interpolation of `CONTROL` points to `size` pixels as a matrix, float32 `[size, CONTROL]`."""
    points = torch.eye(CONTROL, dtype=torch.float64).view(1, CONTROL, CONTROL, 1)
    return F.interpolate(points, (size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.float().contiguous().to(device)


FAMILIES: tuple[Family, ...] = (Patch(), Perturbation(), LowFrequency(), Warp())
