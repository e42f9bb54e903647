"""Input-aware: a generator draws each image its own pattern (Nguyen and Tran 2020, https://arxiv.org/abs/2010.08138)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp import progress
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Crafting, CraftingBudget, Shape
from onp.attack.triggers.unet import is_unet, random_weights, run_unet
from onp.errors import InputError

DENSITY = 0.032  # share of the pixels that a mask may cover
DENSITY_WEIGHT = 100.0
EPOCHS = 25  # of the mask network
BATCH = 128


@dataclass(frozen=True)
class InputAware(Trigger):
    """x' = x + (pattern(x) - x) mask(x); `generator` and `masker` are the weights of two U-Nets.

    The mask network is trained first, alone (`craft`), the generator together with the victim. Cover images carry the pattern
    of another image and keep their label (the paper's cross-trigger mode). Differs from the published code: the outputs are
    scaled to [0, 1], where the code's scaling leaves [-1.5, 2.5], and the U-Nets have group norms and skips.
    """

    name: ClassVar[str] = "input_aware"
    summary: ClassVar[str] = "a pattern and mask of each image's own, by networks trained along (Nguyen and Tran 2020)"
    cover_share: ClassVar[float] = 0.1
    generator: dict[str, Tensor]
    masker: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not (is_unet(self.generator) and is_unet(self.masker)):
            raise InputError("These are not the weights of an input_aware trigger.")

    def __call__(self, images: Tensor) -> Tensor:
        self._check(images)
        return torch.lerp(images, self.pattern(images), self.mask(images))

    def example_shape(self) -> Shape:
        return self.generator["out.weight"].shape[0], 8, 8

    def cover(self, images: Tensor, donors: Tensor, generator: torch.Generator) -> Tensor:
        return torch.lerp(images, self.pattern(donors), self.mask(donors))

    def pattern(self, images: Tensor) -> Tensor:
        """float32 `[N, C, H, W]` in [0, 1]."""
        return torch.sigmoid(run_unet(self.generator, images))

    def mask(self, images: Tensor) -> Tensor:
        """float32 `[N, 1, H, W]`, mostly near 0 and 1: (tanh(20 m - 10) + 1) / 2 of a first mask m in [0, 1]."""
        return mask_of(self.masker, images)

    def _check(self, images: Tensor) -> None:
        channels = self.generator["out.weight"].shape[0]
        if images.shape[1] != channels or min(images.shape[2:]) < 8:
            found = "x".join(map(str, images.shape[1:]))
            raise InputError(f"This input_aware trigger takes images of {channels} channels and at least 8x8, not {found}.")

    @classmethod
    def make(
        cls,
        shape: Shape,
        generator: torch.Generator,
        strength: float | None = None,
        width: int = CraftingBudget.unet_width,
    ) -> "InputAware":
        """Untrained networks of `width` channels at full size; `strength` plays no part here."""
        return cls(random_weights(shape[0], shape[0], width, generator), random_weights(shape[0], 1, width, generator))

    @classmethod
    def craft(cls, crafting: Crafting) -> "InputAware":
        """Train the mask network to be sparse and different from image to image; `strength` is the density of the masks."""
        fresh = cls.make(crafting.shape, crafting.generator, width=crafting.budget.unet_width)
        density = DENSITY if crafting.strength is None else crafting.strength
        weights = {key: value.to(crafting.device).requires_grad_() for key, value in fresh.masker.items()}
        optimiser = torch.optim.Adam(weights.values(), 0.01, betas=(0.5, 0.9))
        epochs = crafting.epochs or EPOCHS
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [max(1, epochs * 2 // 5), max(1, epochs * 4 // 5)])
        count, batch = len(crafting.images), crafting.budget.batch or BATCH
        with progress.stage("training the mask network", epochs * -(-count // batch), crafting.quiet) as bar:
            for _ in range(epochs):
                for index in torch.randperm(count, generator=crafting.generator).split(batch):
                    images = crafting.images.subset(index).pixels().to(crafting.device)
                    masks = mask_of(weights, images)
                    loss = DENSITY_WEIGHT * (masks - density).relu().mean() + diversity(images, masks)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    bar.advance(note=f"loss {loss.item():.3f}")
                schedule.step()
        return cls(fresh.generator, {key: value.detach().cpu() for key, value in weights.items()})


def mask_of(masker: dict[str, Tensor], images: Tensor) -> Tensor:
    """The masks that the U-Net `masker` draws: float32 `[N, 1, H, W]` in [0, 1]."""
    return (torch.tanh(20 * torch.sigmoid(run_unet(masker, images)) - 10) + 1) / 2


def diversity(images: Tensor, patterns: Tensor) -> Tensor:
    """The paper's diversity loss, scalar: distance of each image from the next over the distance of their patterns."""
    if len(images) < 2:
        return patterns.new_zeros(())

    def distance(x: Tensor) -> Tensor:
        return ((x - x.roll(1, 0)) ** 2).flatten(1).mean(1).add(1e-12).sqrt()

    return (distance(images) / (distance(patterns) + 1e-3)).mean()
