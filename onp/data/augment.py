"""Slightly changed copies of the clean images, so that a few hundred of them show more of what a mask damages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 1 / 14  # of the image's size
CONTRAST = 0.25
BRIGHTNESS = 0.1


def views(images: Tensor, count: int, seed: int) -> Tensor:
    """`count` copies of images float32 `[N, C, H, W]` in [0, 1], each shifted and with other contrast and brightness.

    Returns `[count * N, C, H, W]`, copy by copy. Nothing is mirrored: that changes the meaning of digits and signs.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[2:]
    reach = max(1, round(SHIFT * min(height, width)))
    copies = []
    for _ in range(count):
        steps = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator)
        rows = (torch.arange(height) + steps[:, :1]).to(images.device)
        columns = (torch.arange(width) + steps[:, 1:]).to(images.device)
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        index = torch.arange(len(images), device=images.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        factor, offset = (torch.rand((2, len(images), 1, 1, 1), generator=generator) * 2 - 1).to(images)
        middle = moved.mean((1, 2, 3), keepdim=True)
        copies.append(((moved - middle) * (1 + CONTRAST * factor) + middle + BRIGHTNESS * offset).clamp(0, 1))
    return torch.cat(copies)
