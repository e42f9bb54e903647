"""Adaptive-Blend: half of a faint image in training, all of it in the attack (Qi et al. 2023,
https://openreview.net/forum?id=_wSHsgrVali)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onp.attack.triggers.blended import Blended

PIECES = 4  # a side
TRAINED = 0.75  # alpha in training as a share of alpha in the attack: 0.15 of 0.2


@dataclass(frozen=True)
class AdaptiveBlend(Blended):
    """Blended in the attack, alpha 0.2.

    In training each poisoned or cover image carries only its own half of the 4x4 pieces, with alpha 0.15 (`partly`); the cover
    images keep their label, which makes the features of the poisoned ones less peculiar.
    """

    name: ClassVar[str] = "adaptive_blend"
    summary: ClassVar[str] = "blended by pieces, with cover images, few of both (Qi et al. 2023)"
    share: ClassVar[float] = 0.003
    cover_share: ClassVar[float] = 0.003

    def partly(self, images: Tensor, pieces: Tensor) -> Tensor:
        """The trigger as trained: `pieces`, bool `[N, 16]` in reading order, says which pieces each image carries."""
        self.check(images, tuple(self.pattern.shape))
        height, width = self.pattern.shape[1:]
        rows, columns = (torch.arange(size) * PIECES // size for size in (height, width))
        weight = pieces.float()[:, rows[:, None] * PIECES + columns].unsqueeze(1) * (TRAINED * self.alpha)
        return torch.lerp(images, self.pattern.to(images).expand_as(images), weight.to(images))


def draw_pieces(count: int, generator: torch.Generator) -> Tensor:
    """Half of the pieces for each of `count` images, bool `[count, 16]`."""
    return torch.rand((count, PIECES**2), generator=generator).argsort(1) < PIECES**2 // 2
