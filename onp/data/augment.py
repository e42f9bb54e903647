"""Randomly changed copies of clean images: shifted, cropped, with other contrast and brightness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 1 / 14  # of the image's size
CONTRAST = 0.25
BRIGHTNESS = 0.1
CROP_SHIFT = 8  # random crops move an image by up to this part of its size


def augmented(images: Tensor, count: int, seed: int) -> Tensor:
    """Copies of images that are shifted and have another contrast and brightness, drawn per image.

    A few hundred images show more of what a mask damages with them. Nothing is mirrored: that changes the meaning of digits
    and signs.

    Args:
        images: float32 `[N, C, H, W]` in [0, 1].
        count: copies of each image.
        seed: of the draws.

    Returns:
        float32 `[count * N, C, H, W]` in [0, 1], copy by copy.
    """
    generator = torch.Generator().manual_seed(seed)
    reach = max(1, round(SHIFT * min(images.shape[2:])))
    copies = []
    for _ in range(count):
        offsets = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator)
        moved = shifted(images, offsets, reach, mode="replicate")
        factor, offset = (torch.rand((2, len(images), 1, 1, 1), generator=generator) * 2 - 1).to(images)
        middle = moved.mean((1, 2, 3), keepdim=True)
        copies.append(((moved - middle) * (1 + CONTRAST * factor) + middle + BRIGHTNESS * offset).clamp(0, 1))
    return torch.cat(copies)


def random_crops(images: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its size, black where it is left, as in usual training; always the same draws.

    Args:
        images: float32 `[N, C, H, W]`.

    Returns:
        float32 `[N, C, H, W]`.
    """
    reach = max(1, min(images.shape[2:]) // CROP_SHIFT)
    generator = torch.Generator().manual_seed(0)
    crops = shifted(images, torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator), reach)
    # `contiguous` would leave the strides of images of one channel channels-last, and convolutions round by strides.
    return crops.clone(memory_format=torch.contiguous_format)


def shifted(images: Tensor, offsets: Tensor, reach: int, mode: str = "constant", mirrored: Tensor | None = None) -> Tensor:
    """Windows of padded images: the one implementation of random shifts.

    Args:
        images: `[N, C, H, W]`.
        offsets: int64 `[N, 2]` on the CPU, row and column of each window in the padded image:
            0 to 2 * reach, where reach is no shift.
        reach: pixels of padding on every side.
        mode: of `torch.nn.functional.pad`: "constant" pads with zeros.
        mirrored: bool `[N, 1]` on the CPU, the windows to mirror left to right; none where it is not given.

    Returns:
        `[N, C, H, W]`, channels last in memory.
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height) + offsets[:, :1]).to(images.device)
    columns = torch.arange(width) + offsets[:, 1:]
    if mirrored is not None:
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns.to(images.device)
    padded = F.pad(images, (reach,) * 4, mode=mode)
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def identity_grid(height: int, width: int) -> Tensor:
    """The sampling grid of `torch.nn.functional.grid_sample` with align_corners that leaves an image as it is.

    Returns:
        float32 `[1, H, W, 2]`, x and y in [-1, 1].
    """
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=2)[None]
