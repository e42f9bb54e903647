"""How far a small patch leads images to each class, fitted from the best ones of `onp.detect.patch_sweep`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.config import DetectRun
from onp.detect.inversion import InversionTask
from onp.detect.patch_sweep import stamped, start_of
from onp.engine.differentiable import Logits
from onp.engine.metrics import at_once

SMALL_PATCH = "small_patch"
STARTS = 3  # patches of the sweep a class, of which one is left
TRIED, STEPS = 8, 24  # steps after which the best of them is chosen, and in all
LR = 0.5  # Adam step, in logits of the pixels
VALIDATION = 32  # images of other classes, at most, that the result is measured on


def passes(images: int) -> int:
    """How many images a class pass through the network forwards and back.

    Args:
        images: a step.
    """
    return images * (STARTS * TRIED + STEPS - TRIED)


def small_patch_probability(task: InversionTask, validation: tuple[Tensor, Tensor], sweep: Tensor, run: DetectRun) -> Tensor:
    """Fit a small patch for each class, and measure it.

    Args:
        task: the network, clean images that patches are fitted on, and the classes, each once.
        validation: other clean images float32 `[N, C, H, W]` in [0, 1] and their labels, int64 `[N]`.
        sweep: of the same images with the same seed: float32 `[SWEPT, classes]`, mean probability of each class of the network.
        run: images a step (those of `DetectConfig.scan`), seed, and progress (`STEPS` steps).

    Returns:
        float32, a value for each class of the task: its mean probability on images of other classes; nan where there are none.
    """
    (logits,), images, device = task.models, task.images, task.images.device
    generator, goals = torch.Generator().manual_seed(run.seed), torch.tensor(task.targets)
    pools = [(task.labels != target).nonzero()[:, 0].cpu() for target in task.targets]
    numbers = sweep.cpu()[:, goals].nan_to_num(0.0).topk(STARTS, 0).indices.T.flatten()
    rows = torch.arange(len(goals)).repeat_interleave(STARTS)
    patches, corners = start_of(numbers, images, run.seed)
    pixels = (0.9 * patches + 0.05).logit().to(device)
    losses = torch.zeros(len(rows))
    for step in range(STEPS):
        if step in (0, TRIED):
            if step == TRIED:
                left = losses.view(-1, STARTS).argmin(1) + torch.arange(0, len(rows), STARTS)
                rows, corners, pixels = rows[left], corners[left], pixels[left.to(device)]
            pixels = pixels.detach().requires_grad_()
            optimiser = torch.optim.Adam((pixels,), LR)
        picks = [pools[row][torch.randint(len(pools[row]), (run.config.scan.images,), generator=generator)] for row in rows]
        losses, pixels.grad = _differentiated(
            logits, images[torch.stack(picks).to(device)], pixels, (corners, goals[rows]), run
        )
        optimiser.step()
        run.progress()
    found = zip(pixels.detach().sigmoid().split(1), corners.split(1), task.targets, strict=True)
    return torch.stack([_reached(logits, validation, *each) for each in found])


def _differentiated(
    logits: Logits, images: Tensor, pixels: Tensor, aims: tuple[Tensor, Tensor], run: DetectRun
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each patch, float32 `[G]`, and its gradient; `aims` are corners and classes."""
    losses, gradients = [], []
    together = max(1, at_once(images, images[:, :, 0, 0, 0].numel(), run.values_at_once) // images.shape[1])
    for part in torch.arange(len(images)).split(together):
        own = pixels[part.to(pixels.device)]
        triggered = stamped(images[part.to(images.device)], own.sigmoid(), aims[0][part])
        wanted = aims[1][part].repeat_interleave(images.shape[1]).to(images.device)
        loss = F.cross_entropy(logits(triggered.flatten(0, 1)), wanted, reduction="none").view(len(part), -1).mean(1)
        losses.append(loss.detach().cpu())
        gradients.append(torch.autograd.grad(loss.sum(), own)[0])
    return torch.cat(losses), torch.cat(gradients)


@torch.no_grad()
def _reached(logits: Logits, validation: tuple[Tensor, Tensor], patch: Tensor, corner: Tensor, target: int) -> Tensor:
    """Mean probability of the class on images of others."""
    images, labels = validation
    triggered = stamped(images[labels != target][:VALIDATION], patch, corner)[0]
    chance = [logits(part).softmax(1)[:, target] for part in triggered.split(at_once(triggered, VALIDATION)) if len(part)]
    return torch.cat(chance).mean().cpu() if chance else torch.tensor(float("nan"))
