"""What an attacker has for making a trigger, and how much work goes into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation

Shape = tuple[int, int, int]
"""C, H, W of the images."""


@dataclass(frozen=True)
class CraftingBudget:
    """Sizes and lengths of what fits a trigger; None stands for the number that the attack was published with."""

    steps: int | None = None  #: gradient steps that fit a pattern or perturb an image
    unet_width: int = 32  #: channels at full size of the U-Nets that draw triggers
    bits: int = 100  #: length of the string that SSBA hides
    batch: int | None = None  #: images a step in the training of a U-Net


@dataclass(frozen=True)
class Crafting:
    """The training images, the target, and a network trained on clean images for attacks that need one."""

    images: ImageSet  #: the training images
    target: int  #: class that the trigger is to lead to
    generator: torch.Generator
    device: torch.device
    strength: float | None = None  #: amplitude instead of the published one
    network: nn.Module | None = None  #: in eval mode on `device`; takes normalised images
    norm: Normalisation | None = None  #: of `network`
    epochs: int | None = None  #: passes over the images for networks of the trigger's own, instead of the published ones
    budget: CraftingBudget = CraftingBudget()
    quiet: bool = False  #: no progress

    @property
    def shape(self) -> Shape:
        """C, H, W."""
        channels, height, width = self.images.images.shape[1:]
        return channels, height, width

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` random training images, float32 in [0, 1] on `device`, and their labels int64."""
        part = self.images.subset(torch.randperm(len(self.images), generator=self.generator)[:count])
        return part.pixels().to(self.device), part.labels.to(self.device)

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """The clean network's logits of images in [0, 1]."""
        network, norm = self.network, self.norm
        assert network is not None and norm is not None
        return lambda images: network(norm(images))
