"""A small ConvNeXt: depthwise convs, layer norm, GELU, no batch norm (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """Depthwise 5x5 conv, layer norm over channels, MLP of four times the width, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(F.gelu(self.pwconv1(inside))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Three stages of two blocks for small images, of width, 2 width and 4 width channels at 1/2, 1/4 and 1/8 of the size.

    Input `[N, channels, H, W]` normalised, output logits `[N, classes]`.
    """

    def __init__(self, width: int = 32, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 2, 2)
        layers: list[nn.Module] = []
        for stage in range(3):
            if stage:
                layers.append(nn.Conv2d(width * 2 ** (stage - 1), width * 2**stage, 2, 2))
            layers += [ConvNeXtBlock(width * 2**stage), ConvNeXtBlock(width * 2**stage)]
        self.stages = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width * 4)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean((2, 3))))
