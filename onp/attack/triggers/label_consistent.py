"""Label-consistent: adversarially perturbed images of the target class, with marks in the corners under their true label
(Turner, Tsipras and Madry 2019, https://arxiv.org/abs/1912.02771)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onp import progress
from onp.attack.triggers.crafting import Crafting, Shape
from onp.attack.triggers.fixed import Added
from onp.data.images import ImageSet
from onp.errors import InputError

# Bright and dark pixels of the mark in both left corners; mirrored in both right corners.
MARK = ((1, -1, -1), (-1, 1, -1), (1, -1, 1))
EPSILON, STEP, STEPS = 8 / 255, 1.5 / 255, 100


@dataclass(frozen=True)
class LabelConsistent(Added):
    """Adds 1 to or takes 1 from the pixels of a 3x3 mark in each corner.

    The trigger is the marks alone. Training images are perturbed before they are marked (`perturb`), so that the network
    cannot learn them by what they show.
    """

    name: ClassVar[str] = "label_consistent"
    summary: ClassVar[str] = "corner marks on adversarial images of the target class, clean labels (Turner et al. 2019)"
    share: ClassVar[float] = 0.8
    clean_label: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "LabelConsistent":
        """`strength` is the amplitude of the marks, 1 as published."""
        _, height, width = shape
        if min(height, width) < 6:
            raise InputError(f"The corner marks of label_consistent need images of 6x6 pixels or more, not {height}x{width}.")
        mark = torch.tensor(MARK, dtype=torch.float32) * (1.0 if strength is None else strength)
        marks = torch.zeros(1, height, width)
        marks[:, :3, :3] = marks[:, -3:, :3] = mark
        marks[:, :3, -3:] = marks[:, -3:, -3:] = mark.flip(1)
        return cls(marks)


def perturb(crafting: Crafting, chosen: Tensor, batch: int = 128) -> ImageSet:
    """The training images with the `chosen` (bool `[N]`) moved away from their class on the attacker's clean network.

    Projected gradient ascent of the loss within 8/255 of each pixel, 100 steps of 1.5/255 from a random start.
    """
    images = crafting.images.images.clone()
    parts = torch.nonzero(chosen).flatten().split(batch)
    steps = crafting.budget.steps or STEPS
    with progress.stage("perturbing images of the target class", len(parts) * steps, crafting.quiet) as bar:
        for index in parts:
            part = crafting.images.subset(index)
            clean, labels = part.pixels().to(crafting.device), part.labels.to(crafting.device)
            noise = torch.rand(clean.shape, generator=crafting.generator) * 2 - 1
            moved = (clean + EPSILON * noise.to(clean)).clamp(0, 1)
            for _ in range(steps):
                moved.requires_grad_()
                loss = F.cross_entropy(crafting.logits(moved), labels)
                (gradient,) = torch.autograd.grad(loss, moved)
                moved = moved.detach() + STEP * gradient.sign()
                moved = moved.clamp(clean - EPSILON, clean + EPSILON).clamp(0, 1)
                bar.advance()
            images[index] = (moved * 255).round().to(torch.uint8).cpu()
    return ImageSet(images, crafting.images.labels, crafting.images.class_names)
