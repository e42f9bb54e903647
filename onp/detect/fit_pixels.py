"""Fit the pixels of triggers of a fixed form: those that lead most images to a class, whatever they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.config import DetectRun
from onp.detect.inversion import InversionTask
from onp.engine.metrics import at_once

Put = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images float32 `[G, N, C, H, W]` in [0, 1], pixels `[G, ...]` in [0, 1] and the numbers of these triggers, int64 `[G]`, to
triggered images; differentiable in the pixels."""


@dataclass(frozen=True)
class Fit:
    """How pixels are fitted."""

    steps: int
    lr: float  #: Adam step, in logits of the pixels
    images: int  #: a trigger and step


def fit_pixels(task: InversionTask, start: Tensor, put: Put, fit: Fit, run: DetectRun) -> tuple[Tensor, Tensor]:
    """Lower the cross-entropy of the goals over all networks of the task.

    Args:
        task: networks, clean images, and the goal of each trigger.
        start: float32 `[G, ...]`, logits of the pixels.
        put: puts triggers on images.
        fit: settings.
        run: seed, progress (`fit.steps` steps), and how many pixel values go through a network together.

    Returns:
        Logits of the pixels, float32 `[G, ...]` on the device of the images.
        The cross-entropy of each trigger in the last step, float32 `[G]` on the CPU.
    """
    images, device, count = task.images, task.images.device, len(start)
    generator, goals = torch.Generator().manual_seed(run.seed), torch.tensor(task.targets, device=device)
    pools = [(task.labels != target).nonzero()[:, 0].cpu() for target in task.targets]
    pixels = start.detach().to(device, copy=True).requires_grad_()
    optimiser, losses = torch.optim.Adam((pixels,), fit.lr), torch.zeros(count)
    together = max(1, at_once(images, count * fit.images, run.values_at_once) // fit.images)
    for _ in range(fit.steps):
        picks = torch.stack([pool[torch.randint(len(pool), (fit.images,), generator=generator)] for pool in pools])
        parts, gradients = [], []
        for rows in torch.arange(count).split(together):
            own = pixels[rows.to(device)]
            triggered = put(images[picks[rows].to(device)], own.sigmoid(), rows).flatten(0, 1)
            wanted = goals[rows.to(device)].repeat_interleave(fit.images)
            entropies = [F.cross_entropy(model(triggered), wanted, reduction="none") for model in task.models]
            loss = torch.stack(entropies).sum(0).view(len(rows), fit.images).mean(1)
            parts.append(loss.detach().cpu())
            gradients.append(torch.autograd.grad(loss.sum(), own)[0])
        losses, pixels.grad = torch.cat(parts), torch.cat(gradients)
        optimiser.step()
        run.progress()
    return pixels.detach(), losses
