"""Small patches that lead images to each class, fitted from the best ones of `onp.detect.patch_sweep`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onp.detect.config import DetectRun
from onp.detect.fit_pixels import Fit, Put, fit_pixels
from onp.detect.inversion import InversionTask
from onp.detect.patch_sweep import stamped, start_of
from onp.engine.metrics import at_once

SMALL_PATCH = "small_patch"
STARTS = 3  # patches of the sweep a class, of which one is left
TRIED, STEPS = 8, 24  # steps after which the best of them is chosen, and in all
LR = 0.5  # Adam step, in logits of the pixels
VALIDATION = 32  # images of other classes, at most, that the result is measured on


@dataclass(frozen=True, eq=False)
class SmallPatches:
    """A patch for each class in `targets`, where a class may stand several times."""

    targets: tuple[int, ...]
    patches: Tensor  #: float32 `[G, C, side, side]` in [0, 1]
    corners: Tensor  #: int64 `[G, 2]`: row and column of the upper left corner

    @property
    def cost(self) -> Tensor:
        """1 for each, float32 `[G]`: all have one size."""
        return torch.ones(len(self.targets))

    def apply(self, images: Tensor, row: int) -> Tensor:
        """Put the patch of `targets[row]` on images float32 `[N, C, H, W]` in [0, 1]."""
        return stamped(images, self.patches[row : row + 1], self.corners[row : row + 1])[0]


def best_of_sweep(sweep: Tensor, targets: tuple[int, ...], count: int) -> Tensor:
    """The `count` patches of a sweep that lead most to each class, int64 `[G, count]`.

    Args:
        sweep: float32 `[SWEPT, classes]`, mean probability of each class of the network; see `onp.detect.changes.Changes`.
        targets: the classes.
        count: patches for each.
    """
    return sweep.cpu()[:, list(targets)].nan_to_num(0.0).topk(count, 0).indices.T


def fit(task: InversionTask, starts: Tensor, images: int, run: DetectRun) -> SmallPatches:
    """Fit a patch for each class of the task, on all of its networks at once.

    Args:
        task: networks, clean images and classes.
        starts: int64 `[G, S]`, patches of the sweep for each class; after some steps the best of them is chosen.
        images: a step.
        run: the seed, which is that of the sweep, and progress (`STEPS` steps).
    """
    each, targets = starts.shape[1], task.targets
    patches, corners = start_of(starts.flatten(), task.images, run.seed)
    tried = replace(task, targets=tuple(target for target in targets for _ in range(each)))
    pixels, losses = fit_pixels(tried, (0.9 * patches + 0.05).logit(), _put_at(corners), Fit(TRIED, LR, images), run)
    left = losses.view(-1, each).argmin(1) + torch.arange(0, len(losses), each)
    corners, pixels = corners[left], pixels[left.to(pixels.device)]
    pixels, _ = fit_pixels(task, pixels, _put_at(corners), Fit(STEPS - TRIED, LR, images), run)
    return SmallPatches(targets, pixels.sigmoid(), corners)


def _put_at(corners: Tensor) -> Put:
    return lambda images, patches, rows: stamped(images, patches, corners[rows])


def small_patch_probability(task: InversionTask, validation: tuple[Tensor, Tensor], sweep: Tensor, run: DetectRun) -> Tensor:
    """Fit a small patch for each class, and measure it.

    Args:
        task: one network, clean images that patches are fitted on, and the classes.
        validation: other clean images float32 `[N, C, H, W]` in [0, 1] and their labels, int64 `[N]`.
        sweep: of the same images with the same seed, see `best_of_sweep`.
        run: images a step (those of `DetectConfig.scan`), seed, and progress (`STEPS` steps).

    Returns:
        float32, a value for each class of the task: its mean probability on images of other classes; nan where there are none.
    """
    found = fit(task, best_of_sweep(sweep, task.targets, STARTS), run.config.scan.images, run)
    return torch.stack([_reached(task, validation, found, row) for row in range(len(found.targets))])


@torch.no_grad()
def _reached(task: InversionTask, validation: tuple[Tensor, Tensor], found: SmallPatches, row: int) -> Tensor:
    """Mean probability of the class on images of others."""
    (logits,), (images, labels), target = task.models, validation, found.targets[row]
    triggered = found.apply(images[labels != target][:VALIDATION], row)
    chance = [logits(part).softmax(1)[:, target] for part in triggered.split(at_once(triggered, VALIDATION)) if len(part)]
    return torch.cat(chance).mean().cpu() if chance else torch.tensor(float("nan"))
