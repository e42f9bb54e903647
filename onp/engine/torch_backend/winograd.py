"""3x3 convolutions in the compiled module, by Winograd's minimal filtering: a third of the products (csrc/winograd/tiles.h).

For float32 on CPUs, where convolutions are bound by their products. The error is 1.1 (128 channels) to 1.7 times (16) that of a
direct convolution, root mean square. Source: Lavin and Gray, https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp.engine.native import module, native
from onp.engine.steps import ConvStep, Run, activate, masked

PANEL, TAPS = 16, 24  # channels come in multiples of the one; products for 2 x 4 outputs
WORTH = 0.8  # of a direct convolution's products, those on the padding left out; the transforms cost the rest
relu = torch.ops.aten.relu.default


def suits(step: ConvStep, dtype: torch.dtype, input_shape: tuple[int, ...]) -> bool:
    """Whether a step on images of `input_shape` `[C, H, W]` can be run in `dtype` this way, and is faster so."""
    outputs, inputs, *kernel = step.weight.shape
    plain = step.groups == 1 and step.dilation == (1, 1) and step.stride == (1, 1) and kernel == [3, 3]
    if not plain or inputs % PANEL or outputs % PANEL or dtype != torch.float32 or step.weight.device.type != "cpu":
        return False
    padding = step.padding[0]
    if padding != step.padding[1] or padding > 2 or min(input_shape[1:]) + 2 * padding < 3:
        return False
    if module("native")[0] is None:
        return False
    height, width = (size + 2 * padding - 2 for size in input_shape[1:])
    tiles = -(-height // 2) * -(-width // 4)
    return tiles * TAPS <= WORTH * _reads(input_shape[1], height, padding) * _reads(input_shape[2], width, padding)


def _reads(size: int, outputs: int, padding: int) -> int:
    """How often a filter of three taps reads a pixel, and not the padding, along an axis."""
    return sum(0 <= output + tap - padding < size for output in range(outputs) for tap in range(3))


def filters_of(weight: Tensor) -> Tensor:
    """The transform of filters float32 `[K, C, 3, 3]`, C and K multiples of 16: `[24, K / 16, C, 16]`."""
    outputs, inputs = weight.shape[:2]
    if weight.shape[2:] != (3, 3) or weight.dtype != torch.float32:
        raise ValueError(f"filters are {weight.dtype} {list(weight.shape)}; float32 [K, C, 3, 3] are wanted")
    weight = weight.detach().contiguous()
    made = weight.new_empty(TAPS, outputs // PANEL, inputs, PANEL)
    native().conv_filters(weight.data_ptr(), made.data_ptr(), inputs, outputs, torch.get_num_threads())
    return made


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What follows the sums of a convolution: `scale * y + shift + added`, then ReLU."""

    scale: Tensor | None = None  #: float32 `[K]`; None for ones
    shift: Tensor | None = None  #: float32 `[K]`; None for zeros
    added: Tensor | None = None  #: float32 `[N, K, H', W']`; None for zeros
    relu: bool = False


@torch.no_grad()
def conv(x: Tensor, filters: Tensor, padding: int = 1, after: Epilogue = Epilogue()) -> Tensor:
    """Convolve, without gradients.

    Args:
        x: float32 `[N, C, H, W]` of any strides; channels-last is read without a copy.
        filters: of `filters_of`.
        padding: on every side.
        after: what follows.

    Returns:
        float32 `[N, K, H', W']`, H' = H + 2 * padding - 2, channels-last.

    Raises:
        ValueError: the sizes do not fit.
    """
    added = after.added
    images, inputs, height, width = x.shape
    outputs = filters.shape[1] * PANEL
    shape = (images, outputs, height + 2 * padding - 2, width + 2 * padding - 2)
    if filters.shape[2] != inputs:
        raise ValueError(f"x has {inputs} channels, and the filters are for {filters.shape[2]}")
    if any(each is not None and each.shape != (outputs,) for each in (after.scale, after.shift)):
        raise ValueError(f"scale and shift must have a value for each of the {outputs} outputs")
    if added is not None and added.shape != shape:
        raise ValueError(f"added is {list(added.shape)}, and the result {list(shape)}")
    if min(shape[2:]) < 1:
        raise ValueError(f"images of {height} x {width} pixels with padding {padding} have no output")
    x, added = _channels_last(x), None if added is None else _channels_last(added)
    scale, shift = (None if each is None else each.float().contiguous() for each in (after.scale, after.shift))
    out = torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last)
    pointers = (0 if each is None else each.data_ptr() for each in (x, filters, scale, shift, added, out))
    threads = torch.get_num_threads()
    native().conv(*pointers, images, height, width, inputs, outputs, padding, after.relu, threads)
    return out


def _channels_last(x: Tensor) -> Tensor:
    return x.float().contiguous(memory_format=torch.channels_last)


def bind_winograd(step: ConvStep, keep: Tensor | None, filters: Tensor) -> Run:
    """`step`, which `suits`, with `filters_of(step.weight)` and the mask `keep` (float `[K]`)."""
    shift, fused = masked(step.bias, keep), step.activation is not None and step.activation.target is relu

    def run(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = conv(x, filters, step.padding[0], Epilogue(keep, shift, added, fused))
        return y if fused else activate(y, step.activation)

    return run


def bind_differentiable(step: ConvStep) -> Run:
    """`step`, which `suits`, with gradients to its inputs; none to the weights."""
    fused = step.activation is not None and step.activation.target is relu
    turned = step.weight.detach().flip(2, 3).transpose(0, 1)
    layer = _Layer(filters_of(step.weight), filters_of(turned), step.bias, step.padding[0], fused)

    def run(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = _Conv.apply(x, added, layer)
        return y if fused else activate(y, step.activation)

    return run


@dataclass(frozen=True, eq=False)
class _Layer:
    filters: Tensor  # of the convolution
    back: Tensor  # of the convolution that is its gradient: the filters turned round
    bias: Tensor | None
    padding: int
    relu: bool


class _Conv(torch.autograd.Function):
    """`conv` with gradients to `x` and `added`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, layer: _Layer) -> Tensor:
        y = conv(x, layer.filters, layer.padding, Epilogue(None, layer.bias, added, layer.relu))
        ctx.layer = layer
        if layer.relu:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.layer.relu:
            (y,) = ctx.saved_tensors
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad_x = conv(grad, ctx.layer.back, 2 - ctx.layer.padding) if ctx.needs_input_grad[0] else None
        return grad_x, grad if ctx.needs_input_grad[1] else None, None
