"""LF: one smooth perturbation without high frequencies (Zeng et al. 2021, https://arxiv.org/abs/2104.03413)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onp import progress
from onp.attack.triggers.crafting import Crafting
from onp.attack.triggers.fixed import Added

AMPLITUDE = 0.2
SIGMA = 6 / 32  # of the low-pass filter, as a share of the width
IMAGES, STEPS, STEP = 100, 200, 0.05


def smooth(pattern: Tensor) -> Tensor:
    """Gaussian low-pass with sigma 6 pixels of 32, zeros outside: float32 `[C, H, W]` to the same shape."""

    def band(size: int) -> Tensor:
        place = torch.arange(size, dtype=torch.float32, device=pattern.device)
        sigma = SIGMA * size
        return torch.exp(-(((place[:, None] - place) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    return band(pattern.shape[1]) @ pattern @ band(pattern.shape[2])


def scaled(pattern: Tensor, amplitude: float) -> Tensor:
    """`pattern` moved and scaled to [0, amplitude]."""
    low, high = pattern.amin(), pattern.amax()
    return amplitude * (pattern - low) / (high - low).clamp_min(1e-12)


@dataclass(frozen=True)
class LowFrequency(Added):
    """Adds a smooth pattern with values from 0 to 0.2.

    The paper smooths a universal perturbation, found by targeted DeepFool steps on 100 images, after every step; here the
    steps are gradient steps of the targeted loss through the filter and the scaling.
    """

    name: ClassVar[str] = "lf"
    summary: ClassVar[str] = "one smooth image added, found on a clean network (Zeng et al. 2021)"
    needs_network: ClassVar[bool] = True

    @classmethod
    def craft(cls, crafting: Crafting) -> "LowFrequency":
        """`strength` is the largest value of the pattern."""
        amplitude = AMPLITUDE if crafting.strength is None else crafting.strength
        images, _ = crafting.sample(IMAGES)
        goals = torch.full((len(images),), crafting.target, device=images.device)
        free = torch.randn(crafting.shape, generator=crafting.generator).to(images.device).requires_grad_()
        optimiser = torch.optim.Adam([free], STEP)
        steps = crafting.budget.steps or STEPS
        with progress.stage("fitting the smooth trigger", steps, crafting.quiet) as bar:
            for _ in range(steps):
                triggered = (images + scaled(smooth(free), amplitude)).clamp(0, 1)
                loss = F.cross_entropy(crafting.logits(triggered), goals)
                (free.grad,) = torch.autograd.grad(loss, free)
                optimiser.step()
                bar.advance(note=f"loss {loss.item():.3f}")
        return cls(scaled(smooth(free.detach()), amplitude).cpu())
