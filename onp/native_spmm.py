"""`onp.ops.spmm` on the compiled module: outputs are allocated here, pointers handed over, gradients put together.

An autograd.Function over the raw call, and only where a gradient is wanted: a registered op would cost more to dispatch than a
small graph costs to reduce. What depends on the layout of the arguments alone is worked out once, in a `Plan`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp import backend as backends
from onp.csr import Csr, Handle
from onp.native_arrays import array, call, copy_stride, floats, partial, pointer, rowwise, shape_of, shared, strides, valued

_REDUCE = {"sum": 0, "mean": 1, "max": 2}


class Plan:
    """spmm on one graph with arguments of one layout (shapes, strides, dtypes, device), whose checks they have passed.

    `copies`: K, or None where no tensor has that dimension.
    """

    def __init__(
        self, graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None, copies: int | None
    ) -> None:
        self.copies = copies
        self.forward = _Call(graph.native, weight, x, reduce, keep, None, copies)

    def __call__(self, graph: Csr, weight: Tensor | None, x: Tensor, keep: Tensor | None) -> Tensor:
        if (x.requires_grad or (weight is not None and weight.requires_grad)) and torch.is_grad_enabled():
            return _Spmm.apply(graph, self, weight, x, keep)
        return self.forward(weight, x, keep)


class _Call:
    """The call itself, without gradients."""

    def __init__(
        self,
        handle: Handle,
        weight: Tensor | None,
        x: Tensor,
        reduce: str,
        keep: Tensor | None,
        scale: Tensor | None,
        copies: int | None,
    ) -> None:
        self.handle, self.copies, self.device, self.reduce = handle, copies, x.device, reduce
        self.shape = shape_of(copies, handle.rows, x.shape[-1])
        tidy = _tidy(weight, x, keep)
        self.is_tidy = all(a is b for a, b in zip(tidy, (weight, x, keep), strict=True))
        weight, x, keep = tidy
        layout = (*strides(x), copy_stride(weight, 1), copy_stride(keep, 1), copy_stride(scale, 1))
        sizes = (copies or 1, x.shape[-1], _REDUCE[reduce], x.dtype == torch.bfloat16)
        self.function = backends.native().spmm(handle.graph, *layout, *sizes)
        # On CUDA mean and cut rows take more arrays than the result.
        self.is_short = not x.is_cuda

    def __call__(self, weight: Tensor | None, x: Tensor, keep: Tensor | None) -> Tensor:
        if not (self.is_short and self.is_tidy):
            return self.with_extras(weight, x, keep, None, False)[0]
        out = x.new_empty(self.shape)
        self.function(
            x.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if keep is None else keep.data_ptr(),
            *(0, out.data_ptr(), 0, 0, 0),
            torch.get_num_threads(),
            0,
        )
        return out

    def with_extras(
        self, weight: Tensor | None, x: Tensor, keep: Tensor | None, scale: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The result, and for the gradient of mean the factor of each row, of max the winner of each feature."""
        weight, x, keep = _tidy(weight, x, keep)
        out = x.new_empty(self.shape)
        mean = arg = cut = None
        if self.reduce == "mean" and (training or x.is_cuda):
            mean = torch.empty(self.shape[:-1], device=self.device)
        if training and self.reduce == "max":
            arg = torch.empty(self.shape, dtype=torch.int32, device=self.device)
        if self.reduce != "max":
            cut = partial(self.handle, self.copies, self.shape[-1], self.device)
        pointers = [pointer(t) for t in (x, weight, keep, scale, out, mean, arg, cut)]
        if self.is_short:
            self.function(*pointers, torch.get_num_threads(), 0)
        else:
            with torch.cuda.device(self.device):
                self.function(*pointers, 1, torch.cuda.current_stream().cuda_stream)
        return out, mean, arg


def _tidy(weight: Tensor | None, x: Tensor, keep: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The arguments as the compiled module takes them."""
    return None if weight is None else floats(weight), rowwise(x), None if keep is None else keep.contiguous()


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, plan: Plan, weight, x, keep):
        out, mean, arg = plan.forward.with_extras(weight, x, keep, None, True)
        needs_x = weight is not None and weight.requires_grad
        ctx.save_for_backward(weight, x if needs_x else None, keep, mean, arg)
        ctx.graph, ctx.copies, ctx.x = graph, plan.copies, (x.shape, x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        weight, x, keep, mean, arg = ctx.saved_tensors
        graph, copies, (shape, dtype) = ctx.graph, ctx.copies, ctx.x
        grad_weight = grad_x = None
        _, _, for_weight, for_x, _ = ctx.needs_input_grad
        if arg is not None:
            grad_x, grad_weight = _max_gradients(graph, weight, x, arg, grad, copies, for_weight, for_x)
        else:
            if for_x:
                back = _Call(graph.native_transposed, weight, grad, "sum", keep, mean, copies)
                grad_x = back.with_extras(weight, grad, keep, mean, False)[0]
            if for_weight:
                grad_weight = _edge_dot(graph.native, grad, x, keep, copies, mean)
        if grad_x is not None:
            grad_x = shared(grad_x, len(shape)).to(dtype)
        if grad_weight is not None:
            grad_weight = shared(grad_weight, weight.dim()).to(weight.dtype)
        return None, None, grad_weight, grad_x, None


def _edge_dot(handle: Handle, grad: Tensor, x: Tensor, keep: Tensor | None, copies: int | None, scale: Tensor | None) -> Tensor:
    grad, x, keep = rowwise(grad), rowwise(x), None if keep is None else keep.contiguous()
    out = torch.empty(shape_of(copies, handle.edges), device=x.device)
    arrays = (*valued(keep), *array(grad), *array(x), *valued(scale), out.data_ptr())
    call("edge_dot", handle, *arrays, copies or 1, 1, x.shape[-1], x.dtype == torch.bfloat16, device=x.device)
    return out


def _max_gradients(
    graph: Csr,
    weight: Tensor | None,
    x: Tensor | None,
    arg: Tensor,
    grad: Tensor,
    copies: int | None,
    for_weight: bool,
    for_x: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grad, x = rowwise(grad), None if x is None else rowwise(x)
    weight = None if weight is None else floats(weight)
    device, features = grad.device, grad.shape[-1]
    grad_x = torch.empty(shape_of(copies, graph.columns, features), device=device) if for_x else None
    grad_weight = torch.empty(shape_of(copies, graph.edges), device=device) if for_weight else None
    arrays = (arg.data_ptr(), *array(grad), *((0, 0, 0) if x is None else array(x)), *valued(weight))
    sizes = (copies or 1, features, grad.dtype == torch.bfloat16)
    back = graph.native_transposed.graph
    call("spmm_max_grad", graph.native, back, *arrays, pointer(grad_x), pointer(grad_weight), *sizes, device=device)
    return grad_x, grad_weight
