"""The ops on the compiled module: outputs are allocated here, pointers handed over, gradients put together.

An autograd.Function over the raw call: a registered op would cost more to dispatch than a small graph costs to reduce.
`copies`: K, or None where no tensor has that dimension; `keep` is contiguous. The checks are those of `onp.ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp import backend as backends
from onp.csr import Csr, Handle

_REDUCE = {"sum": 0, "mean": 1, "max": 2}


def spmm(graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None, copies: int | None) -> Tensor:
    """`onp.ops.spmm`."""
    if torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad)):
        return _Spmm.apply(graph, weight, x, reduce, keep, copies)
    return _spmm(graph.native, weight, x, reduce, keep, copies, None, False)[0]


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, copies: int | None) -> Tensor:
    """`onp.ops.edge_softmax`."""
    return _EdgeSoftmax.apply(graph, score, keep, copies)


def attention(
    graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
) -> Tensor:
    """`onp.ops.attention`."""
    return _Attention.apply(graph, source, target, att, slope, keep, copies)


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, weight, x, reduce, keep, copies):
        out, mean, arg = _spmm(graph.native, weight, x, reduce, keep, copies, None, True)
        needs_x = weight is not None and weight.requires_grad
        ctx.save_for_backward(weight, x if needs_x else None, keep, mean, arg)
        ctx.graph, ctx.copies, ctx.x = graph, copies, (x.shape, x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        weight, x, keep, mean, arg = ctx.saved_tensors
        graph, copies, (shape, dtype) = ctx.graph, ctx.copies, ctx.x
        grad_weight = grad_x = None
        if arg is not None:
            grad_x, grad_weight = _max_gradients(graph, weight, x, arg, grad, copies, *ctx.needs_input_grad[1:3])
        else:
            if ctx.needs_input_grad[2]:
                grad_x = _spmm(graph.native_transposed, weight, grad, "sum", keep, copies, mean, False)[0]
            if ctx.needs_input_grad[1]:
                grad_weight = _edge_dot(graph.native, grad, x, keep, copies, mean)
        if grad_x is not None:
            grad_x = _shared(grad_x, len(shape)).to(dtype)
        if grad_weight is not None:
            grad_weight = _shared(grad_weight, weight.dim()).to(weight.dtype)
        return None, grad_weight, grad_x, None, None, None


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, score, keep, copies):
        score32 = _floats(score)
        alpha = torch.empty(_shape(copies, *score.shape[-2:]), device=score.device)
        arguments = (*_mask(keep), score32.data_ptr(), _copy(score32, 2), alpha.data_ptr(), copies or 1, score.shape[-1])
        _call("edge_softmax", graph.native, *arguments, device=score.device)
        ctx.save_for_backward(alpha)
        ctx.graph, ctx.copies, ctx.score = graph, copies, (score.dim(), score.dtype)
        return alpha.to(score.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        (alpha,) = ctx.saved_tensors
        dims, dtype = ctx.score
        grad, out = _floats(grad), torch.empty_like(alpha)
        pointers = (alpha.data_ptr(), _copy(alpha, 2), grad.data_ptr(), _copy(grad, 2), out.data_ptr())
        _call("edge_softmax_grad", ctx.graph.native, *pointers, ctx.copies or 1, alpha.shape[-1], device=grad.device)
        return None, _shared(out, dims).to(dtype), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Csr, source, target, att, slope, keep, copies):
        heads, channels = att.shape
        alpha = torch.empty(_shape(copies, graph.edges, heads), device=source.device)
        out = source.new_empty(_shape(copies, graph.rows, heads, channels))
        left, right, att32 = source.flatten(-2), target.flatten(-2), _floats(att).contiguous()
        left, right = _rowwise(left), _rowwise(right)
        arrays = (*_mask(keep), *_array(left), *_array(right), att32.data_ptr(), slope, alpha.data_ptr())
        partial = _partial(graph.native, copies, heads * channels, source.device)
        sizes = (copies or 1, heads, channels, source.dtype == torch.bfloat16)
        _call("attention", graph.native, *arrays, out.data_ptr(), _pointer(partial), *sizes, device=source.device)
        ctx.save_for_backward(left, right, att32, alpha, keep)
        ctx.graph, ctx.slope, ctx.sizes, ctx.dims, ctx.att = graph, slope, sizes, (source.dim(), target.dim()), att.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        left, right, att, alpha, keep = ctx.saved_tensors
        graph, (copies, heads, channels, _) = ctx.graph, ctx.sizes
        grad = _rowwise(grad.flatten(-2))
        batch, features = alpha.shape[:-2], heads * channels
        grad_score = torch.empty_like(alpha)
        grad_source = grad.new_empty((*batch, graph.columns, features))
        grad_target = grad.new_empty((*batch, graph.rows, features))
        parts = copies * graph.rows if att.is_cuda else backends.native().att_parts
        grad_att = torch.empty((parts, heads, channels), device=att.device)
        partials = [_partial(h, copies, features, att.device, 2) for h in (graph.native, graph.native_transposed)]
        arrays = (*_mask(keep), *_array(left), *_array(right), att.data_ptr(), ctx.slope, alpha.data_ptr())
        outputs = [t.data_ptr() for t in (grad_score, grad_source, grad_target, grad_att)]
        both = (graph.native_transposed.graph, *arrays, *map(_pointer, partials), *ctx.sizes, *_array(grad), *outputs)
        _call("attention_grad", graph.native, *both, device=grad.device)
        found = [
            _shared(t, dims - 1).unflatten(-1, (heads, channels))
            for t, dims in zip((grad_source, grad_target), ctx.dims, strict=True)
        ]
        return None, *found, grad_att.sum(0).to(ctx.att), None, None, None


def _spmm(
    handle: Handle,
    weight: Tensor | None,
    x: Tensor,
    reduce: str,
    keep: Tensor | None,
    copies: int | None,
    scale: Tensor | None,
    training: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result, and for the gradient of mean the factor of each row, of max the winner of each feature."""
    features, device, number = x.shape[-1], x.device, copies or 1
    x = _rowwise(x)
    out = x.new_empty(_shape(copies, handle.rows, features))
    mean = arg = partial = None
    if reduce == "mean" and (training or x.is_cuda):
        mean = torch.empty(_shape(copies, handle.rows), device=device)
    if training and reduce == "max":
        arg = torch.empty(out.shape, dtype=torch.int32, device=device)
    if handle.cut is not None and reduce != "max":
        partial = _partial(handle, copies, features, device)
    weight = None if weight is None else _floats(weight)
    values = (*_values(weight), *_values(scale))
    outputs = (out.data_ptr(), _pointer(mean), _pointer(arg), _pointer(partial))
    sizes = (number, 1, features, _REDUCE[reduce], x.dtype == torch.bfloat16)
    _call("spmm", handle, *_mask(keep), *_array(x), *values, *outputs, *sizes, device=device)
    return out, mean, arg


def _edge_dot(handle: Handle, grad: Tensor, x: Tensor, keep: Tensor | None, copies: int | None, scale: Tensor | None) -> Tensor:
    grad, x = _rowwise(grad), _rowwise(x)
    out = torch.empty(_shape(copies, handle.edges), device=x.device)
    sizes = (copies or 1, 1, x.shape[-1], x.dtype == torch.bfloat16)
    _call("edge_dot", handle, *_mask(keep), *_array(grad), *_array(x), *_values(scale), out.data_ptr(), *sizes, device=x.device)
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
    grad, x = _rowwise(grad), None if x is None else _rowwise(x)
    weight = None if weight is None else _floats(weight)
    device, features = grad.device, grad.shape[-1]
    grad_x = torch.empty(_shape(copies, graph.columns, features), device=device) if for_x else None
    grad_weight = torch.empty(_shape(copies, graph.edges), device=device) if for_weight else None
    arrays = (arg.data_ptr(), *_array(grad), *((0, 0, 0) if x is None else _array(x)), *_values(weight))
    sizes = (copies or 1, features, grad.dtype == torch.bfloat16)
    back = graph.native_transposed.graph
    _call("spmm_max_grad", graph.native, back, *arrays, _pointer(grad_x), _pointer(grad_weight), *sizes, device=device)
    return grad_x, grad_weight


def _call(name: str, handle: Handle, *arguments: Any, device: torch.device) -> None:
    function = getattr(backends.native(), name)
    if device.type == "cpu":
        function(handle.graph, *arguments, torch.get_num_threads(), 0)
        return
    with torch.cuda.device(device):
        function(handle.graph, *arguments, 1, torch.cuda.current_stream().cuda_stream)


def _shape(copies: int | None, *rest: int) -> tuple[int, ...]:
    return rest if copies is None else (copies, *rest)


def _rowwise(x: Tensor) -> Tensor:
    """x with its features side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _array(x: Tensor) -> tuple[int, int, int]:
    """Pointer, row stride and copy stride of x [K] [N, F]."""
    strides = x.stride()
    return x.data_ptr(), strides[-2], strides[0] if len(strides) == 3 else 0


def _floats(values: Tensor) -> Tensor:
    """Values per edge in float32, contiguous but for the copies."""
    return values if values.dtype == torch.float32 and values.is_contiguous() else values.float().contiguous()


def _copy(values: Tensor, dims: int) -> int:
    """The copy stride of values that have `dims` dimensions without the copies."""
    return values.stride(0) if values.dim() > dims else 0


def _values(values: Tensor | None) -> tuple[int, int]:
    return (0, 0) if values is None else (values.data_ptr(), _copy(values, 1))


def _mask(keep: Tensor | None) -> tuple[int, int]:
    return (0, 0) if keep is None else (keep.data_ptr(), _copy(keep, 1))


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _partial(handle: Handle, copies: int | None, features: int, device: torch.device, arrays: int = 1) -> Tensor | None:
    """Room for the sums of the segments that CUDA cuts long rows into."""
    if handle.cut is None:
        return None
    return torch.empty((arrays, copies or 1, handle.segments, features), device=device)


def _shared(grad: Tensor, dims: int) -> Tensor:
    """The gradient of a tensor of `dims` dimensions: summed over the copies if they shared it."""
    return grad.sum(0) if grad.dim() > dims else grad
