"""`message_passing.ops.spmm` on the compiled module: outputs are allocated here, pointers handed over, gradients put together.

An autograd.Function over the raw call, and only where a gradient is wanted: a registered op would cost more to dispatch than a
small graph costs to reduce. What depends on the layout of the arguments alone is worked out once, in a `PreparedSpmm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onp.engine.native import native
from onp.search.message_passing.csr import Csr, Handle, PreparedCalls
from onp.search.message_passing.native_arrays import (
    as_float32,
    call,
    copy_stride,
    count,
    data_and_copy_stride,
    data_and_strides,
    differentiable_once,
    launch,
    partial,
    pointer,
    rowwise,
    shape_of,
    strides,
    sum_over_copies,
)

_REDUCE = {"sum": 0, "mean": 1, "max": 2}


class PreparedSpmm:
    """spmm on one graph with arguments of one layout (shapes, strides, dtypes, device), whose checks they have passed.

    `copies`: K, or None where no tensor has that dimension.
    """

    def __init__(
        self, graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None, copies: int | None
    ) -> None:
        self.copies, self.reduce = copies, reduce
        self.forward = _Call(graph.native, weight, x, reduce, keep, None, copies)
        self.gradients = PreparedCalls()  # the call that makes the gradient of x, by the strides of the result's

    def __call__(self, graph: Csr, weight: Tensor | None, x: Tensor, keep: Tensor | None) -> Tensor:
        if (x.requires_grad or (weight is not None and weight.requires_grad)) and torch.is_grad_enabled():
            return _Spmm.apply(self, graph, weight, x, keep)
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
        sizes = (count(copies), x.shape[-1], _REDUCE[reduce], x.dtype == torch.bfloat16)
        self.function = native().spmm(handle.graph, *layout, *sizes)

    def __call__(
        self,
        weight: Tensor | None,
        x: Tensor,
        keep: Tensor | None,
        scale: Tensor | None = None,
        mean: Tensor | None = None,
        arg: Tensor | None = None,
    ) -> Tensor:
        """The result. Arrays that receive, where given: `mean` the factor of each row, `arg` the winner of each feature."""
        if not self.is_tidy:
            weight, x, keep = _tidy(weight, x, keep)
        out, cut = x.new_empty(self.shape), None
        if x.is_cuda and self.reduce != "max":  # sums there take more arrays than the result
            cut = partial(self.handle, self.copies, self.shape[-1], self.device)
            mean = self.factors(x) if mean is None and cut is not None and self.reduce == "mean" else mean
        pointers = (x.data_ptr(), pointer(weight), pointer(keep), pointer(scale), out.data_ptr(), pointer(mean), pointer(arg))
        launch(self.function, self.device, *pointers, pointer(cut))
        return out

    def factors(self, x: Tensor) -> Tensor:
        """Room for 1 / number of edges of each row."""
        return x.new_empty(self.shape[:-1], dtype=torch.float32)


def _tidy(weight: Tensor | None, x: Tensor, keep: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The arguments as the compiled module takes them."""
    return None if weight is None else as_float32(weight), rowwise(x), None if keep is None else keep.contiguous()


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepared: PreparedSpmm, graph: Csr, weight, x, keep):
        mean = prepared.forward.factors(x) if prepared.reduce == "mean" else None
        arg = x.new_empty(prepared.forward.shape, dtype=torch.int32) if prepared.reduce == "max" else None
        out = prepared.forward(weight, x, keep, None, mean, arg)
        needs_x = weight is not None and weight.requires_grad
        ctx.save_for_backward(weight, x if needs_x else None, keep, mean, arg)
        ctx.prepared, ctx.graph, ctx.x = prepared, graph, (x.dim(), x.dtype)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad):
        weight, x, keep, mean, arg = ctx.saved_tensors
        prepared, graph, (dims, dtype) = ctx.prepared, ctx.graph, ctx.x
        grad_weight = grad_x = None
        _, _, for_weight, for_x, _ = ctx.needs_input_grad
        if arg is not None:
            grad_x, grad_weight = _max_gradients(prepared, graph, weight, x, arg, grad, for_weight, for_x)
        else:
            if for_x:
                back = prepared.gradients.get(grad.stride())
                if back is None:
                    back = _Call(graph.native_transposed, weight, grad, "sum", keep, mean, prepared.copies)
                    prepared.gradients[grad.stride()] = back
                grad_x = back(weight, grad, keep, mean)
            if for_weight:
                grad_weight = _edge_dot(graph.native, grad, x, keep, prepared.copies, mean)
        if grad_x is not None:
            grad_x = sum_over_copies(grad_x, dims).to(dtype)
        if grad_weight is not None:
            grad_weight = sum_over_copies(grad_weight, weight.dim()).to(weight.dtype)
        return None, None, grad_weight, grad_x, None


def _edge_dot(handle: Handle, grad: Tensor, x: Tensor, keep: Tensor | None, copies: int | None, scale: Tensor | None) -> Tensor:
    grad, x, keep = rowwise(grad), rowwise(x), None if keep is None else keep.contiguous()
    out = torch.empty(shape_of(copies, handle.edges), device=x.device)
    arrays = (
        *data_and_copy_stride(keep),
        *data_and_strides(grad),
        *data_and_strides(x),
        *data_and_copy_stride(scale),
        out.data_ptr(),
    )
    call("edge_dot", handle, *arrays, count(copies), 1, x.shape[-1], x.dtype == torch.bfloat16, device=x.device)
    return out


def _max_gradients(
    prepared: PreparedSpmm,
    graph: Csr,
    weight: Tensor | None,
    x: Tensor | None,
    arg: Tensor,
    grad: Tensor,
    for_weight: bool,
    for_x: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grad, x = rowwise(grad), None if x is None else rowwise(x)
    weight = None if weight is None else as_float32(weight)
    device, features, copies = grad.device, grad.shape[-1], prepared.copies
    layout = (grad.stride(), for_weight)
    function = prepared.gradients.get(layout)
    if function is None:
        handles = (graph.native.graph, graph.native_transposed.graph)
        arrays = (*strides(grad), *((0, 0) if x is None else strides(x)), copy_stride(weight, 1))
        sizes = (count(copies), features, grad.dtype == torch.bfloat16)
        function = prepared.gradients[layout] = native().spmm_max_grad(*handles, *arrays, *sizes)
    grad_x = torch.empty(shape_of(copies, graph.columns, features), device=device) if for_x else None
    grad_weight = torch.empty(shape_of(copies, graph.edges), device=device) if for_weight else None
    launch(function, device, arg.data_ptr(), grad.data_ptr(), *map(pointer, (x, weight, grad_x, grad_weight)))
    return grad_x, grad_weight
