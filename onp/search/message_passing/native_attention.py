"""`ops.edge_softmax` and `ops.attention` on the compiled module; see `native_spmm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onp.engine.native import native
from onp.search.message_passing.csr import Csr, PreparedCalls
from onp.search.message_passing.native_arrays import (
    as_float32,
    call,
    copy_stride,
    count,
    data_and_copy_stride,
    differentiable_once,
    launch,
    partial,
    pointer,
    shape_of,
    sum_over_copies,
)


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, copies: int | None) -> Tensor:
    """`ops.edge_softmax`, whose checks it relies on; `copies`: K, or None where no tensor has that dimension."""
    return _EdgeSoftmax.apply(graph, score, None if keep is None else keep.contiguous(), copies)


class PreparedAttention:
    """attention on one graph with arguments of one layout, whose checks they have passed; see `native_spmm.PreparedSpmm`."""

    def __init__(
        self, graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
    ) -> None:
        heads, channels = att.shape
        self.copies, self.device = copies, source.device
        self.scores, self.shape = shape_of(copies, graph.edges, heads), shape_of(copies, graph.rows, heads, channels)
        self.sources = shape_of(copies, graph.columns, heads, channels)
        given = (source, target, att, keep)
        source, target, att, keep = tidy = _tidy(*given)
        self.is_tidy = all(a is b for a, b in zip(tidy, given, strict=True))
        sizes = (slope, count(copies), heads, channels, source.dtype == torch.bfloat16)
        self.layout = (*_strides(source), *_strides(target), copy_stride(keep, 1), *sizes)
        self.function = native().attention(graph.native.graph, *self.layout)
        self.gradients = PreparedCalls()  # the call that makes the gradients, by the strides of the result's

    def __call__(self, graph: Csr, source: Tensor, target: Tensor, att: Tensor, keep: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and (source.requires_grad or target.requires_grad or att.requires_grad):
            return _Attention.apply(self, graph, source, target, att, keep)
        return self.forward(graph, *self.tidy(source, target, att, keep))[0]

    def tidy(
        self, source: Tensor, target: Tensor, att: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Arguments of this layout as the compiled module takes them."""
        return (source, target, att, keep) if self.is_tidy else _tidy(source, target, att, keep)

    def forward(self, graph: Csr, source: Tensor, target: Tensor, att: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """The result, and the weight of every edge."""
        alpha, out = att.new_empty(self.scores), source.new_empty(self.shape)
        cut = partial(graph.native, self.copies, att.numel(), self.device)
        pointers = (source.data_ptr(), target.data_ptr(), att.data_ptr(), pointer(keep), alpha.data_ptr(), out.data_ptr())
        launch(self.function, self.device, *pointers, pointer(cut))
        return out, alpha

    def gradients_for(self, graph: Csr, grad: Tensor) -> Callable[..., None]:
        """The compiled module's function for gradients of the result in the layout of `grad`."""
        function = self.gradients.get(grad.stride())
        if function is None:
            handles = (graph.native.graph, graph.native_transposed.graph)
            function = native().attention_grad(*handles, *self.layout, *_strides(grad))
            self.gradients[grad.stride()] = function
        return function


def _tidy(source: Tensor, target: Tensor, att: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments as the compiled module takes them."""
    return _side_by_side(source), _side_by_side(target), as_float32(att), None if keep is None else keep.contiguous()


def _side_by_side(x: Tensor) -> Tensor:
    """x [K] [N, H, C] with the features of a node side by side."""
    stride = x.stride()
    return x if stride[-1] == 1 and stride[-2] == x.shape[-1] else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int]:
    """Row stride and copy stride of x [K] [N, H, C]."""
    stride = x.stride()
    return stride[-3], stride[0] if len(stride) == 4 else 0


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, score, keep, copies):
        score32 = as_float32(score)
        alpha = torch.empty(shape_of(copies, *score.shape[-2:]), device=score.device)
        pointers = (*data_and_copy_stride(keep), score32.data_ptr(), copy_stride(score32, 2), alpha.data_ptr())
        call("edge_softmax", graph.native, *pointers, count(copies), score.shape[-1], device=score.device)
        ctx.save_for_backward(alpha)
        ctx.graph, ctx.copies, ctx.score = graph, copies, (score.dim(), score.dtype)
        return alpha.to(score.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad):
        (alpha,) = ctx.saved_tensors
        dims, dtype = ctx.score
        grad, out = as_float32(grad), torch.empty_like(alpha)
        pointers = (alpha.data_ptr(), copy_stride(alpha, 2), grad.data_ptr(), copy_stride(grad, 2), out.data_ptr())
        call("edge_softmax_grad", ctx.graph.native, *pointers, count(ctx.copies), alpha.shape[-1], device=grad.device)
        return None, sum_over_copies(out, dims).to(dtype), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepared: PreparedAttention, graph: Csr, source, target, att, keep):
        left, right, att32, keep = prepared.tidy(source, target, att, keep)
        out, alpha = prepared.forward(graph, left, right, att32, keep)
        ctx.save_for_backward(left, right, att32, alpha, keep)
        ctx.prepared, ctx.graph, ctx.att = prepared, graph, att.dtype
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad):
        left, right, att, alpha, keep = ctx.saved_tensors
        prepared, graph = ctx.prepared, ctx.graph
        grad = _side_by_side(grad)
        grad_score, grad_target = torch.empty_like(alpha), torch.empty_like(grad, memory_format=torch.contiguous_format)
        grad_source = grad.new_empty(prepared.sources)
        grad_att = None
        if ctx.needs_input_grad[4]:
            parts = count(prepared.copies) * graph.rows if att.is_cuda else native().att_parts
            grad_att = att.new_empty((parts, *att.shape))
        outputs = (grad_score, grad_source, grad_target, grad_att)
        handles = (graph.native, graph.native_transposed)
        partials = [partial(handle, prepared.copies, att.numel(), prepared.device, 2) for handle in handles]
        pointers = map(pointer, (left, right, att, keep, alpha, grad, *outputs, *partials))
        launch(prepared.gradients_for(graph, grad), prepared.device, *pointers)
        if grad_att is not None:
            grad_att = (grad_att.sum(0) if att.is_cuda else grad_att[0]).to(ctx.att)
        return None, None, sum_over_copies(grad_source, left.dim()), sum_over_copies(grad_target, right.dim()), grad_att, None
