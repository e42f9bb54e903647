"""What the methods that train share: batches of clean images, a copy to train, and the way back to a Victim."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onp import progress
from onp.data.augment import augmented
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.edit import with_tensors
from onp.model.mask import Mask
from onp.model.prune import pruned_rows
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

BATCH = 128


def trainable(victim: Victim, pruned: Mask | None = None) -> nn.Module:
    """A copy of the network whose parameters want gradients, in training mode.

    pruned: a mask that `victim` was repaired with. The gradients of its pruned rows are zero, so these stay at zero under
    every optimiser whose step is zero where weight and gradient are, momentum, weight decay and sharpness included.

    Raises InputError for an exported program, which has no training mode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's copy of exported graphs
        model = copy.deepcopy(victim.model)
    try:
        model.requires_grad_(True).train()
    except NotImplementedError as error:
        raise InputError("An exported program cannot be trained; give its weights as a state dict, with --arch.") from error
    if pruned is not None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for key, rows in pruned_rows(victim, pruned).items():
            parameters[key].register_hook(_without(rows.to(victim.device)))
    return model


def _without(rows: Tensor) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(rows.view(-1, *[1] * (gradient.dim() - 1)), 0)

    return hook


def with_weights(victim: Victim, model: nn.Module) -> Victim:
    """A new Victim with the weights of `model`, a copy of its network; see `onp.model.edit.with_tensors`."""
    return with_tensors(victim, model.state_dict())


@dataclass(frozen=True)
class Schedule:
    """How long one stage of a method trains, and on what: `epochs` passes over the images, or `steps` batches."""

    name: str  #: what the progress shows
    epochs: int = 0
    steps: int = 0
    passes: int = 1  #: forward and backward passes that a step makes, counted against `TuneConfig.passes`
    size: int = BATCH  #: images of a batch
    augment: bool = True  #: each image is slightly shifted, with another contrast and brightness


def batches(victim: Victim, images: ImageSet, config: TuneConfig, schedule: Schedule) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Shuffled batches of the images, with progress.

    Yields:
        The share of the steps done, x float32 `[N, C, H, W]` normalised, and labels int64 `[N]`, on the victim's device, with N
        at least 2, for the sake of batch norm.
    """
    size = min(schedule.size, len(images))
    generator = torch.Generator().manual_seed(config.seed)
    parts: list[Tensor] = []
    total = config.steps(schedule.steps or schedule.epochs * -(-len(images) // size), schedule.passes * size)
    with progress.stage(schedule.name, total, config.quiet) as bar:
        for step in range(total):
            if not parts:
                parts = list(torch.randperm(len(images), generator=generator).split(size))
                parts = [part for part in parts if len(part) > 1]
            chosen = images.subset(parts.pop())
            seed = int(torch.randint(2**31, (), generator=generator))
            pixels = augmented(chosen.pixels(), 1, seed) if schedule.augment else chosen.pixels()
            yield step / total, victim.normalisation(pixels.to(victim.device)), chosen.labels.to(victim.device)
            bar.advance()


def cosine(optimiser: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Set the learning rate of a cosine schedule from `peak` to 0 at the share `done` of its steps."""
    for group in optimiser.param_groups:
        group["lr"] = peak * (1 + math.cos(math.pi * done)) / 2


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser down the gradient of `loss`."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def away_from(probabilities: Tensor, classes: Tensor) -> Tensor:
    """-log(1 - p) of a class of each image: float [N] from probabilities [N, classes] and int64 [N]."""
    chosen = probabilities.gather(1, classes[:, None])[:, 0]
    return -torch.log1p(-chosen.clamp_max(1 - 1e-6))
