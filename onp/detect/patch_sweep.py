"""The class that a small patch leads to, tried at every place with a few patterns; forward passes only.

A backdoor that looks for a patch in one corner shows to no random change, and the soft mask of an inverted patch (Neural
Cleanse), which starts over the whole image, often does not find that corner. A patch of fixed size (Brown et al. 2017,
"Adversarial Patch", https://arxiv.org/abs/1712.09665) on a grid of places shows every class at once. In a network without a
backdoor a patch of a sixty-fourth of the image leads few images anywhere. What is found is fitted in `onp.detect.small_patch`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.engine.metrics import at_once

PATCH_SWEEP = "patch_sweep"
SIDE = 8  # patches side by side across an image
PLACES = 8  # rows and columns of the grid, from edge to edge
RANDOM = 2  # patterns of one random colour, and as many of random pixels, beside white, black and two chequerboards
PATTERNS = 4 + 2 * RANDOM
SWEPT = PATTERNS * PLACES**2  # patches in all


def swept(images: ImageSet, count: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`count` of the images with every pattern at every place.

    Args:
        images: clean images.
        count: of them, at most.
        seed: of the choice among them, and of the patterns.

    Yields:
        `PATCH_SWEEP`, changed images float32 `[G, N, C, H, W]` in [0, 1] of some patches, which follow each other as in
        `start_of`, and the places of the unchanged ones, int64 `[G, N]`.
    """
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    pixels = images.subset(picked).pixels()
    for numbers in torch.arange(SWEPT).split(max(1, at_once(pixels, 250) // len(pixels))):
        yield PATCH_SWEEP, stamped(pixels, *start_of(numbers, pixels, seed)), picked.expand(len(numbers), -1)


def start_of(numbers: Tensor, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Patches of the sweep.

    Args:
        numbers: int64 `[G]`, below `SWEPT`.
        images: float32 `[..., C, H, W]`, of which only the shape counts.
        seed: of the sweep.

    Returns:
        float32 `[G, C, side, side]`: the pixels, 0 or 1.
        int64 `[G, 2]`: row and column of the upper left corner.
    """
    channels, height, width = images.shape[-3:]
    side, generator = patch_side(height, width), torch.Generator().manual_seed(seed)
    board = (torch.arange(side)[:, None] + torch.arange(side)).remainder(2).float().expand(channels, -1, -1)
    plain = torch.rand((RANDOM, channels, 1, 1), generator=generator).round().expand(-1, -1, side, side)
    noise = torch.rand((RANDOM, channels, side, side), generator=generator).round()
    patterns = torch.cat((torch.stack((torch.ones_like(board), torch.zeros_like(board), board, 1 - board)), plain, noise))
    rows, columns = (torch.linspace(0, length - side, PLACES).round().long() for length in (height, width))
    corners = torch.cartesian_prod(rows, columns)
    return patterns[numbers // len(corners)], corners[numbers % len(corners)]


def patch_side(height: int, width: int) -> int:
    """Side of a patch in pixels.

    Example:
        >>> [patch_side(size, size) for size in (8, 28, 32, 224)]
        [2, 4, 4, 28]
    """
    return max(2, round(min(height, width) / SIDE))


def stamped(images: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Images with patches on; differentiable in the patches.

    Args:
        images: float32 `[N, C, H, W]`, on which every patch is put, or `[G, N, C, H, W]`, with other images for each.
        patches: float32 `[G, C, side, side]`.
        corners: int64 `[G, 2]`: row and column of the upper left corner, so that the patch lies inside the image.

    Returns:
        float32 `[G, N, C, H, W]`.
    """
    count, channels, side = patches.shape[:3]
    height, width = images.shape[-2:]
    along = torch.arange(side, device=images.device)
    rows, columns = (corner[:, None] + along for corner in corners.to(images.device).T)
    pixel = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    covered = torch.zeros((count, 1, height * width), dtype=images.dtype, device=images.device).scatter(2, pixel, 1.0)
    canvas = patches.new_zeros((count, channels, height * width)).scatter(2, pixel.expand(-1, channels, -1), patches.flatten(2))
    return images * (1 - covered.view(count, 1, 1, height, width)) + canvas.view(count, 1, channels, height, width)
