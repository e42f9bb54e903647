"""What an attacker has for fitting a trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onp.attack.triggers.base import Shape
from onp.data.images import ImageSet, Normalisation


@dataclass(frozen=True)
class Crafting:
    """The training images, the aim, and a network trained on clean images for attacks that need one."""

    images: ImageSet  #: the training images
    target: int  #: class that the trigger is to lead to
    generator: torch.Generator
    device: torch.device
    strength: float | None = None  #: amplitude instead of the published one
    network: nn.Module | None = None  #: in eval mode on `device`; takes normalised images
    norm: Normalisation | None = None  #: of `network`
    epochs: int | None = None  #: passes over the images for networks of the trigger's own, instead of the published ones
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
