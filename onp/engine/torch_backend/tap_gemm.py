"""Convolutions over small maps as matrix products: one per output row and filter tap, over that tap's pixels of all images.

Values lie in memory as `[H, W, N, C]`, so that neighbouring pixels of all images are one matrix; what a filter would read
from the padding is left out. At 4x4 pixels and a 3x3 filter that is 31 % of the products, and the matrices are as tall as
pixels times images where a row of four pixels is all that a direct convolution sees at once.
"""

import torch
from torch import Tensor

from onp.engine.steps import ConvStep, Run, activate, masked

MOST_PIXELS = 64  # of an output map; with more oneDNN's direct convolution is faster (float32, AVX-512)


def suits(step: ConvStep, dtype: torch.dtype, input_shape: tuple[int, ...], products: int) -> bool:
    """Whether a step is faster this way.

    Float32 only: sums would be rounded to bfloat16 after every tap. Without strides: with them the products are of one pixel of
    each image, and took 1.2 to 4 times as long as oneDNN (64 to 4 images, AVX2).

    Args:
        step: the convolution.
        dtype: it is computed in.
        input_shape: `[C, H, W]` of its images.
        products: least number of input times output channels (`Tuning.tap_gemm_products`).
    """
    outputs, inputs, *kernel = step.weight.shape
    height, width = output_size(step, input_shape)
    plain = step.groups == 1 and step.dilation == step.stride == (1, 1) and kernel != [1, 1] and dtype == torch.float32
    return plain and height * width <= MOST_PIXELS and inputs * outputs >= products


def output_size(step: ConvStep, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of what `step` makes of `[C, H, W]`; stride and dilation 1."""
    sizes = zip(input_shape[1:], step.weight.shape[2:], step.padding, strict=True)
    height, width = (size + 2 * padding - kernel + 1 for size, kernel, padding in sizes)
    return height, width


def bind_small_map(step: ConvStep, keep: Tensor | None, input_shape: tuple[int, ...]) -> Run:
    """`step` with the mask `keep` (float `[K]`) in its weights; input float32 `[N, C, H, W]` of any strides.

    The result is a view `[N, K, H, W]` of memory `[H, W, N, K]`.
    """
    rows, columns = output_size(step, input_shape)
    _, height, width = input_shape
    weight = step.weight.permute(2, 3, 1, 0).float()  # [R, S, C, K]
    weight = (weight.contiguous() if keep is None else weight * keep).contiguous()
    bias = masked(step.bias, keep)
    bias = weight.new_zeros(weight.shape[3]) if bias is None else bias.float()
    vertical = _taps(rows, step.padding[0], height, weight.shape[0])
    horizontal = _taps(columns, step.padding[1], width, weight.shape[1])
    products = [
        (row, row + below, slice(left, right), slice(left + beside, right + beside), weight[r, s])
        for r, (top, bottom, below) in enumerate(vertical)
        for row in range(top, bottom)
        for s, (left, right, beside) in enumerate(horizontal)
        if left < right
    ]

    def run(x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x.float().permute(2, 3, 0, 1).contiguous()
        images, channels = x.shape[2:]
        y = bias.repeat(rows, columns, images, 1)
        for row, source_row, targets, sources, tap in products:
            y[row, targets].view(-1, len(bias)).addmm_(x[source_row, sources].view(-1, channels), tap)
        y = y.permute(2, 3, 0, 1)
        return activate(y if added is None else y.add_(added), step.activation)

    return run


def _taps(outputs: int, padding: int, size: int, kernel: int) -> list[tuple[int, int, int]]:
    """For each tap of a filter along one axis: first and last (exclusive) output that it reaches, and from an output to the
    input it reads there."""
    found = []
    for tap in range(kernel):
        first, last = max(0, padding - tap), min(outputs, size - tap + padding)
        found.append((first, max(first, last), tap - padding))
    return found
