"""`onp.ops.edge_softmax` and `onp.ops.attention` on the compiled module; see `onp.native_spmm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp import backend as backends
from onp.csr import Csr
from onp.native_arrays import array, call, copy_stride, floats, partial, pointer, rowwise, shape_of, shared, valued


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, copies: int | None) -> Tensor:
    """`onp.ops.edge_softmax`, whose checks it relies on; `copies`: K, or None where no tensor has that dimension."""
    return _EdgeSoftmax.apply(graph, score, None if keep is None else keep.contiguous(), copies)


def attention(
    graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
) -> Tensor:
    """`onp.ops.attention`."""
    return _Attention.apply(graph, source, target, att, slope, None if keep is None else keep.contiguous(), copies)


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, score, keep, copies):
        score32 = floats(score)
        alpha = torch.empty(shape_of(copies, *score.shape[-2:]), device=score.device)
        arguments = (*valued(keep), score32.data_ptr(), copy_stride(score32, 2), alpha.data_ptr(), copies or 1, score.shape[-1])
        call("edge_softmax", graph.native, *arguments, device=score.device)
        ctx.save_for_backward(alpha)
        ctx.graph, ctx.copies, ctx.score = graph, copies, (score.dim(), score.dtype)
        return alpha.to(score.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        (alpha,) = ctx.saved_tensors
        dims, dtype = ctx.score
        grad, out = floats(grad), torch.empty_like(alpha)
        pointers = (alpha.data_ptr(), copy_stride(alpha, 2), grad.data_ptr(), copy_stride(grad, 2), out.data_ptr())
        call("edge_softmax_grad", ctx.graph.native, *pointers, ctx.copies or 1, alpha.shape[-1], device=grad.device)
        return None, shared(out, dims).to(dtype), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, source, target, att, slope, keep, copies):
        heads, channels = att.shape
        alpha = torch.empty(shape_of(copies, graph.edges, heads), device=source.device)
        out = source.new_empty(shape_of(copies, graph.rows, heads, channels))
        left, right, att32 = source.flatten(-2), target.flatten(-2), floats(att).contiguous()
        left, right = rowwise(left), rowwise(right)
        arrays = (*valued(keep), *array(left), *array(right), att32.data_ptr(), slope, alpha.data_ptr())
        cut = partial(graph.native, copies, heads * channels, source.device)
        sizes = (copies or 1, heads, channels, source.dtype == torch.bfloat16)
        call("attention", graph.native, *arrays, out.data_ptr(), pointer(cut), *sizes, device=source.device)
        ctx.save_for_backward(left, right, att32, alpha, keep)
        ctx.graph, ctx.slope, ctx.sizes, ctx.dims, ctx.att = graph, slope, sizes, (source.dim(), target.dim()), att.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        left, right, att, alpha, keep = ctx.saved_tensors
        graph, (copies, heads, channels, _) = ctx.graph, ctx.sizes
        grad = rowwise(grad.flatten(-2))
        batch, features = alpha.shape[:-2], heads * channels
        grad_score = torch.empty_like(alpha)
        grad_source = grad.new_empty((*batch, graph.columns, features))
        grad_target = grad.new_empty((*batch, graph.rows, features))
        parts = copies * graph.rows if att.is_cuda else backends.native().att_parts
        grad_att = torch.empty((parts, heads, channels), device=att.device)
        partials = [partial(h, copies, features, att.device, 2) for h in (graph.native, graph.native_transposed)]
        arrays = (*valued(keep), *array(left), *array(right), att.data_ptr(), ctx.slope, alpha.data_ptr())
        outputs = [t.data_ptr() for t in (grad_score, grad_source, grad_target, grad_att)]
        both = (graph.native_transposed.graph, *arrays, *map(pointer, partials), *ctx.sizes, *array(grad), *outputs)
        call("attention_grad", graph.native, *both, device=grad.device)
        found = [
            shared(t, dims - 1).unflatten(-1, (heads, channels))
            for t, dims in zip((grad_source, grad_target), ctx.dims, strict=True)
        ]
        return None, *found, grad_att.sum(0).to(ctx.att), None, None, None
