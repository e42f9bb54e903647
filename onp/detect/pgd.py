"""Targeted PGD: a sample-specific trigger family, one small adversarial perturbation for each image.

Adversarial examples of a backdoored network reach the target class more often than others, whatever the trigger is (SAU,
https://arxiv.org/abs/2307.10562; PBE, https://arxiv.org/abs/2405.17929). They exist in clean networks too, so only a class that
is reached anomalously often counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.config import DetectRun
from onp.engine.differentiable import Logits, fitting_logits
from onp.engine.metrics import at_once
from onp.model.victim import Victim

PGD = "pgd"
STEPS = 5
IMAGES = 16  # of other classes, for each class
RELATIVE_SIZE = 0.04  # L2 norm of the perturbation, as a share of the largest possible, sqrt(C H W)


def pgd_radius(images: Tensor) -> float:
    """Radius of the L2 ball, in pixel units, for images `[N, C, H, W]` in [0, 1]."""
    return RELATIVE_SIZE * float(images[0].numel()) ** 0.5


def targeted_examples(logits: Logits, images: Tensor, *, target: int | Tensor, radius: float) -> Tensor:
    """Projected gradient steps to a class inside an L2 ball around each image.

    Args:
        logits: of the network.
        images: float32 `[N, C, H, W]` in [0, 1].
        target: a class, or int64 `[N]`.
        radius: of the ball, in pixel units.

    Returns:
        float32 `[N, C, H, W]` in [0, 1].
    """
    goal = torch.as_tensor(target, device=images.device).expand(len(images))
    out = []
    part_size = at_once(images, 64)
    for part, wanted in zip(images.split(part_size), goal.split(part_size), strict=True):
        delta = torch.zeros_like(part)
        for _ in range(STEPS):
            delta.requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(logits((part + delta).clamp(0, 1)), wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            direction = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = delta.detach() - 2 * radius / STEPS * direction
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = delta * (radius / length).clamp_max(1)
        out.append((part + delta).clamp(0, 1))
    return torch.cat(out)


def target_probability(victim: Victim, images: Tensor, labels: Tensor, classes: tuple[int, ...], run: DetectRun) -> Tensor:
    """Mean probability of classes on adversarial examples that aim at them.

    Args:
        victim: the network.
        images: float32 `[N, C, H, W]` in [0, 1].
        labels: int64 `[N]`.
        classes: to aim at.
        run: the seed draws the images.

    Returns:
        float32, a value for each of `classes`.
    """
    generator = torch.Generator().manual_seed(run.seed)
    picked = []
    for target in classes:
        others = (labels != target).nonzero()[:, 0]
        picked.append(others[torch.randperm(len(others), generator=generator)[:IMAGES].to(others.device)])
    counts = [len(each) for each in picked]
    goals = torch.tensor(classes).repeat_interleave(torch.tensor(counts)).to(images.device)
    logits = fitting_logits(victim)
    examples = targeted_examples(logits, images[torch.cat(picked)], target=goals, radius=pgd_radius(images))
    with torch.no_grad():
        chance = torch.cat([logits(part).softmax(1) for part in examples.split(at_once(examples, 250))])
    reached = chance.gather(1, goals[:, None])[:, 0].cpu().split(counts)
    return torch.stack([each.mean() for each in reached])
