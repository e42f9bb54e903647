"""A trigger family of few frequencies: a universal perturbation whose cosine transform is sparse.

Sinusoids (SIG, Barni et al. 2019, https://arxiv.org/abs/1902.11237), changed coefficients of a cosine transform (CTRL,
https://arxiv.org/abs/2210.07346) and fields without fine detail are a few coefficients, however large they are in pixels.
So the cost is the sum of the coefficients' sizes, as a patch's is the sum of its mask. Coefficients are squares of the
parameters with their sign, whose decay makes them sparse in few steps (Hoff 2017, https://arxiv.org/abs/1611.00040).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from onp.detect.trigger_families import Perturbation

SPECTRUM = "spectrum"


class Spectrum(Perturbation):
    """x' = clip(x + d); cost: the sum of the absolute coefficients of d's orthonormal cosine transform, pixels in [0, 1]."""

    name = SPECTRUM
    parameter_names = ("roots",)
    lr = 0.1
    weight = 0.02

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn((count, *shape), generator=generator) * 0.15,)

    def image(self, parameters: tuple[Tensor, ...], height: int, width: int) -> Tensor:
        coefficients = parameters[0] * parameters[0].abs()
        return cosines(height, coefficients.device).T @ coefficients @ cosines(width, coefficients.device)

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return parameters[0].square().sum((1, 2, 3))

    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        return (parameters[0] * factor.sqrt().view(-1, 1, 1, 1),)


@cache
def cosines(size: int, device: torch.device) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of `size` pixels as a matrix, float32 `[size, size]`, a frequency a row."""
    frequency, place = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    rows = torch.cos(math.pi * (place + 0.5) * frequency / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float().contiguous().to(device)
