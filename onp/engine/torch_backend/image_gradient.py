"""The first convolution with gradients to the images, which have few channels, by the compiled module.

Libraries that lay channels out in vectors have one or three channels to fill one with. Here the filters' many channels are the
vectors (csrc/image_gradient/rows.h); 1.2 to 2.5 times as fast as oneDNN (`python bench/conv.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp.engine.native import module, native
from onp.engine.steps import ConvStep, Run, activate

PANEL, MOST_CHANNELS = 16, 4  # output channels come in multiples of the one; the image has at most so many


def suits(step: ConvStep, dtype: torch.dtype) -> bool:
    """Whether the gradient of a step to its input can be computed this way."""
    outputs, inputs = step.weight.shape[:2]
    plain = step.groups == 1 and step.dilation == (1, 1) and len(set(step.stride)) == len(set(step.padding)) == 1
    fits = inputs <= MOST_CHANNELS and outputs % PANEL == 0 and dtype == torch.float32 and step.weight.device.type == "cpu"
    return plain and fits and module("native")[0] is not None


@torch.no_grad()
def image_gradient(grad: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """The gradient of a convolution to its input.

    Args:
        grad: float32 `[N, K, H', W']` of any strides; channels-last is read without a copy.
        weight: float32 `[K, C, R, S]`, K a multiple of 16, C at most 4.
        size: height and width of the input.
        stride: in both directions.
        padding: on every side.

    Returns:
        float32 `[N, C, H, W]`, channels-last.

    Raises:
        ValueError: the sizes do not fit.

    Example:
        >>> image_gradient(torch.ones(2, 16, 8, 8), torch.ones(16, 3, 3, 3), (8, 8), 1, 1).shape
        torch.Size([2, 3, 8, 8])
    """
    grad = grad.float().contiguous(memory_format=torch.channels_last)
    filters = weight.float().permute(2, 3, 1, 0).contiguous()  # [R, S, C, K]
    images, outputs, *grad_size = grad.shape
    rows, columns, channels, of_filters = filters.shape
    if of_filters != outputs:
        raise ValueError(f"the gradient has {outputs} channels, and the filters have {of_filters}")
    out = torch.empty(images, *size, channels)
    pointers = (grad.data_ptr(), filters.data_ptr(), out.data_ptr())
    sizes = (images, *size, channels, *grad_size, outputs, rows, columns, stride, padding)
    native().image_gradient(*pointers, *sizes, torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


def bind_first_conv(step: ConvStep) -> Run:
    """`step`, which `suits`, with gradients to its input; none to the weights."""
    weight = step.weight.detach().contiguous(memory_format=torch.channels_last)
    layer = _Layer(weight, step.bias, step.stride[0], step.padding[0])

    def run(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = _Conv.apply(x, layer)
        return activate(y if added is None else y + added, step.activation)

    return run


@dataclass(frozen=True, eq=False)
class _Layer:
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer) -> Tensor:
        ctx.layer, ctx.size = layer, (x.shape[2], x.shape[3])
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return image_gradient(grad, ctx.layer.weight, ctx.size, ctx.layer.stride, ctx.layer.padding), None
