"""The sample-specific family: small perturbations made for each image alone.

Adversarial examples of a backdoored network drift to the target class, whatever the trigger is (SAU,
https://arxiv.org/abs/2307.10562; PBE, https://arxiv.org/abs/2405.17929). They also exist in clean networks, so this family
only speaks where one class is reached anomalously often.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.metrics import at_once
from onp.model.victim import Victim

STEPS = 5
RELATIVE_SIZE = 0.04  # L2 of the perturbation, as a share of the largest possible, sqrt(C H W)


def adversarial_size(images: Tensor) -> float:
    """L2 budget in pixel units for images `[N, C, H, W]` in [0, 1]."""
    return RELATIVE_SIZE * float(images[0].numel()) ** 0.5


def targeted_examples(victim: Victim, images: Tensor, *, target: int | Tensor, size: float) -> Tensor:
    """Projected gradient steps to `target` (a class, or int64 `[N]`) inside an L2 ball of radius `size` around each image.

    `images` float32 `[N, C, H, W]` in [0, 1], returned changed and within [0, 1].
    """
    goal = torch.as_tensor(target, device=images.device).expand(len(images))
    out = []
    size_of_part = at_once(images, 64)
    for part, wanted in zip(images.split(size_of_part), goal.split(size_of_part), strict=True):
        delta = torch.zeros_like(part)
        for _ in range(STEPS):
            delta.requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(victim.logits((part + delta).clamp(0, 1)), wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            direction = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = delta.detach() - 2 * size / STEPS * direction
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = delta * (size / length).clamp_max(1)
        out.append((part + delta).clamp(0, 1))
    return torch.cat(out)


def adversarial_reach(victim: Victim, images: Tensor, labels: Tensor, seed: int, count: int) -> Tensor:
    """Mean probability, float32 `[classes]`, that `count` images of other classes reach each class."""
    generator = torch.Generator().manual_seed(seed)
    size, reached = adversarial_size(images), []
    for target in range(victim.classes):
        others = images[labels != target]
        picked = others[torch.randperm(len(others), generator=generator)[:count].to(images.device)]
        examples = targeted_examples(victim, picked, target=target, size=size)
        with torch.no_grad():
            logits = victim.logits(examples)
        reached.append(logits.softmax(1)[:, target].mean())
    return torch.stack(reached).cpu()
