"""Tensors as the compiled module takes them: a pointer and strides, features side by side, values in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp.engine.native import native
from onp.search.message_passing.csr import Handle


def call(name: str, handle: Handle, *arguments: Any, device: torch.device) -> None:
    """The function `name` of the compiled module, on the caller's number of threads or stream."""
    launch(getattr(native(), name), device, handle.graph, *arguments)


def launch(function: Callable[..., None], device: torch.device, *arguments: Any) -> None:
    """Calls a function of the compiled module, which takes a number of threads and a stream behind its arguments."""
    if device.type == "cpu":
        function(*arguments, torch.get_num_threads(), 0)
        return
    if device.index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            launch(function, device, *arguments)
        return
    function(*arguments, 1, torch._C._cuda_getCurrentRawStream(device.index))  # torch.cuda.current_stream makes an object


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's once_differentiable, whose checks (some 10 us) run only where a second derivative may be asked for."""
    checked = once_differentiable(backward)
    return lambda ctx, grad: (checked if torch.is_grad_enabled() else backward)(ctx, grad)


def shape_of(copies: int | None, *rest: int) -> tuple[int, ...]:
    """The shape `rest` of K copies, or of one where no tensor has that dimension."""
    return rest if copies is None else (copies, *rest)


def count(copies: int | None) -> int:
    """The number of copies as the compiled module takes it."""
    return 1 if copies is None else copies


def rowwise(x: Tensor) -> Tensor:
    """x with its features side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def data_and_strides(x: Tensor) -> tuple[int, int, int]:
    """Pointer, row stride and copy stride of x [K] [N, F]."""
    return x.data_ptr(), *strides(x)


def strides(x: Tensor) -> tuple[int, int]:
    """Row stride and copy stride of x [K] [N, F]."""
    stride = x.stride()
    return stride[-2], stride[0] if len(stride) == 3 else 0


def as_float32(values: Tensor) -> Tensor:
    """Values per edge in float32, contiguous but for the copies."""
    return values if values.dtype == torch.float32 and values.is_contiguous() else values.float().contiguous()


def copy_stride(values: Tensor | None, dims: int) -> int:
    """The copy stride of values that have `dims` dimensions without the copies."""
    return values.stride(0) if values is not None and values.dim() > dims else 0


def data_and_copy_stride(values: Tensor | None) -> tuple[int, int]:
    """Pointer and copy stride of [K] [N] values; zeros for none."""
    return pointer(values), copy_stride(values, 1)


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def partial(handle: Handle, copies: int | None, features: int, device: torch.device, arrays: int = 1) -> Tensor | None:
    """Room for the sums of the segments that CUDA cuts long rows into."""
    if handle.cut is None:
        return None
    return torch.empty((arrays, count(copies), handle.segments, features), device=device)


def sum_over_copies(grad: Tensor, dims: int) -> Tensor:
    """The gradient of a tensor of `dims` dimensions: summed over the copies if they shared it."""
    return grad.sum(0) if grad.dim() > dims else grad
