"""`onp.ops.edge_softmax` and `onp.ops.attention` on the compiled module; see `onp.native_spmm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp import backend as backends
from onp.csr import Csr
from onp.native_arrays import call, copy_stride, floats, partial, pointer, shape_of, shared, valued


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, copies: int | None) -> Tensor:
    """`onp.ops.edge_softmax`, whose checks it relies on; `copies`: K, or None where no tensor has that dimension."""
    return _EdgeSoftmax.apply(graph, score, None if keep is None else keep.contiguous(), copies)


def attention(
    graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
) -> Tensor:
    """`onp.ops.attention`."""
    keep = None if keep is None else keep.contiguous()
    if torch.is_grad_enabled() and (source.requires_grad or target.requires_grad or att.requires_grad):
        return _Attention.apply(graph, source, target, att, slope, keep, copies)
    return _attention(graph, _side_by_side(source), _side_by_side(target), floats(att), slope, keep, copies)[0]


def _attention(
    graph: Csr, left: Tensor, right: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
) -> tuple[Tensor, Tensor]:
    """The result, and the weight of every edge; features side by side, att in float32."""
    heads, channels = att.shape
    alpha = att.new_empty(shape_of(copies, graph.edges, heads))
    out = left.new_empty(shape_of(copies, graph.rows, heads, channels))
    cut = partial(graph.native, copies, heads * channels, left.device)
    arrays = (
        *valued(keep),
        *_array(left),
        *_array(right),
        att.data_ptr(),
        slope,
        alpha.data_ptr(),
        out.data_ptr(),
        pointer(cut),
    )
    sizes = (copies or 1, heads, channels, left.dtype == torch.bfloat16)
    call("attention", graph.native, *arrays, *sizes, device=left.device)
    return out, alpha


def _side_by_side(x: Tensor) -> Tensor:
    """x [K] [N, H, C] with the features of a node side by side."""
    stride = x.stride()
    return x if stride[-1] == 1 and stride[-2] == x.shape[-1] else x.contiguous()


def _array(x: Tensor) -> tuple[int, int, int]:
    """Pointer, row stride and copy stride of x [K] [N, H, C]."""
    stride = x.stride()
    return x.data_ptr(), stride[-3], stride[0] if len(stride) == 4 else 0


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
        left, right, att32 = _side_by_side(source), _side_by_side(target), floats(att)
        out, alpha = _attention(graph, left, right, att32, slope, keep, copies)
        ctx.save_for_backward(left, right, att32, alpha, keep)
        ctx.graph, ctx.slope, ctx.copies, ctx.att = graph, slope, copies or 1, att.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        left, right, att, alpha, keep = ctx.saved_tensors
        graph, copies, (heads, channels) = ctx.graph, ctx.copies, att.shape
        grad, batch = _side_by_side(grad), alpha.shape[:-2]
        grad_score = torch.empty_like(alpha)
        grad_source = grad.new_empty((*batch, graph.columns, heads, channels))
        grad_target = grad.new_empty((*batch, graph.rows, heads, channels))
        parts = copies * graph.rows if att.is_cuda else backends.native().att_parts
        grad_att = att.new_empty((parts, heads, channels))
        partials = [partial(h, copies, heads * channels, att.device, 2) for h in (graph.native, graph.native_transposed)]
        arrays = (*valued(keep), *_array(left), *_array(right), att.data_ptr(), ctx.slope, alpha.data_ptr())
        outputs = [t.data_ptr() for t in (grad_score, grad_source, grad_target, grad_att)]
        sizes = (copies, heads, channels, grad.dtype == torch.bfloat16)
        both = (graph.native_transposed.graph, *arrays, *map(pointer, partials), *sizes, *_array(grad), *outputs)
        call("attention_grad", graph.native, *both, device=grad.device)
        found = (shared(grad_source, left.dim()), shared(grad_target, right.dim()))
        return None, *found, grad_att.sum(0).to(ctx.att), None, None, None
