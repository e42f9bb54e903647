"""Message passing over CSR graphs: spmm, edge_softmax and attention, differentiable, on a backend of your choice.

`onp_kernels.reference` says in plain torch what each op returns; csrc/ computes it in float32 and bfloat16 on CPU and CUDA.
Each op works on K copies of a graph at once, which share its edges and differ in features, weights or pruned nodes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from onp import backend as backends
from onp import native_ops, scatter
from onp.csr import Csr
from onp.errors import InputError
from onp_kernels import reference

REDUCTIONS = ("sum", "mean", "max")
_NATIVE = (torch.float32, torch.bfloat16)


def spmm(
    graph: Csr,
    weight: Tensor | None,
    x: Tensor,
    reduce: str = "sum",
    keep: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """`out[v] = sum over the edges e of row v of weight[e] * x[indices[e]]`; `mean` and `max` alike.

    Shapes and dtypes: `onp_kernels.reference.spmm`. Differentiable once in weight and x.
    `backend`: one of `onp.backend.BACKENDS`, "auto" or None (see `onp.backend.choose`). The native one computes in float32
    and bfloat16, adding in float32; under "auto" other dtypes run in torch.

    On the native backend the terms of a row are added in an order that does not depend on the number of threads: results
    repeat bit for bit, gradients too.

    Raises InputError for shapes, dtypes or devices that do not fit, and for a graph whose edges lead outside.
    """
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce={reduce!r} is not known: choose sum, mean or max.")
    if x.dim() not in (2, 3) or x.shape[-2] != graph.columns or not x.is_floating_point():
        raise InputError(f"x must be floating point [K] [{graph.columns}, F], not {x.dtype} {tuple(x.shape)}.")
    copies = _copies(graph, x, 2, x, keep)
    if weight is not None:
        if weight.shape[-1:] != (graph.edges,) or weight.dtype not in (x.dtype, torch.float32):
            shape = tuple(weight.shape)
            raise InputError(f"weight must be {x.dtype} or float32 [K] [{graph.edges}], not {weight.dtype} {shape}.")
        copies = _joined(copies, weight, 1, x.device)
    if torch.compiler.is_compiling():
        return torch.ops.onp.spmm(graph.indptr, graph.indices, graph.columns, weight, x, reduce, keep)
    chosen = _backend_for(x, backend)
    if chosen == "native":
        return native_ops.spmm(graph, weight, x, reduce, _contiguous(keep), copies)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.spmm(graph.indptr, graph.indices, weight, x, reduce, keep)
    return scatter.spmm(chosen, graph, weight, x, reduce, keep, copies)


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """`out[e] = exp(score[e]) / sum of exp(score) over the edges of e's row`, for each of H columns of scores.

    Shapes and dtypes: `onp_kernels.reference.edge_softmax`. Differentiable once. Backends, repeatability and errors as for
    `spmm`.
    """
    if score.dim() not in (2, 3) or score.shape[-2] != graph.edges or not score.is_floating_point():
        raise InputError(f"score must be floating point [K] [{graph.edges}, H], not {score.dtype} {tuple(score.shape)}.")
    copies = _copies(graph, score, 2, score, keep)
    if torch.compiler.is_compiling():
        return torch.ops.onp.edge_softmax(graph.indptr, graph.indices, graph.columns, score, keep)
    chosen = _backend_for(score, backend)
    if chosen == "native":
        return native_ops.edge_softmax(graph, score, _contiguous(keep), copies)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.edge_softmax(graph.indptr, graph.indices, score, keep)
    return scatter.edge_softmax(graph, score, keep, copies)


def attention(
    graph: Csr,
    source: Tensor,
    target: Tensor,
    att: Tensor,
    slope: float = 0.2,
    keep: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """GATv2's scores, softmax and weighted sum in one visit of each row (https://arxiv.org/abs/2105.14491, equation 7).

    Shapes and dtypes: `onp_kernels.reference.attention`. Differentiable once in source, target and att. Backends,
    repeatability and errors as for `spmm`.
    """
    for name, features, nodes in (("source", source, graph.columns), ("target", target, graph.rows)):
        if features.dim() not in (3, 4) or features.shape[-3] != nodes or not features.is_floating_point():
            shape = tuple(features.shape)
            raise InputError(f"{name} must be floating point [K] [{nodes}, H, C], not {features.dtype} {shape}.")
    if source.shape[-2:] != target.shape[-2:] or source.dtype != target.dtype:
        raise InputError(f"source {tuple(source.shape)} and target {tuple(target.shape)} must agree in dtype, H and C.")
    if att.shape != source.shape[-2:] or att.dtype not in (source.dtype, torch.float32):
        raise InputError(f"att must be {source.dtype} or float32 {list(source.shape[-2:])}, not {att.dtype} {list(att.shape)}.")
    copies = _joined(_copies(graph, source, 3, source, keep), target, 3, source.device)
    copies = _joined(copies, att, 2, source.device)
    if torch.compiler.is_compiling():
        return torch.ops.onp.attention(graph.indptr, graph.indices, graph.columns, source, target, att, slope, keep)
    chosen = _backend_for(source, backend)
    if chosen == "native":
        return native_ops.attention(graph, source, target, att, slope, _contiguous(keep), copies)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.attention(graph.indptr, graph.indices, source, target, att, slope, keep)
    return scatter.attention(graph, source, target, att, slope, keep, copies)


def _contiguous(keep: Tensor | None) -> Tensor | None:
    return None if keep is None else keep.contiguous()


def _backend_for(x: Tensor, requested: str | None) -> str:
    chosen = backends.choose(requested, x.device.type)
    if chosen == "native" and x.dtype not in _NATIVE:
        if requested == "native":
            raise InputError(f"The native backend computes in float32 and bfloat16, not {x.dtype}: convert x or choose torch.")
        return "torch"
    return chosen


def _copies(graph: Csr, x: Tensor, dims: int, like: Tensor, keep: Tensor | None) -> int | None:
    """K, or None if nothing has that dimension; checks device and mask. `dims`: of x without it."""
    if graph.indptr.device != x.device:
        raise InputError(f"The graph and the tensors must be on one device, not on {graph.indptr.device} and {x.device}.")
    copies = x.shape[0] if x.dim() > dims else None
    if keep is None:
        return copies
    if graph.rows != graph.columns:
        raise InputError(f"keep needs a square graph, not one of {graph.rows} rows and {graph.columns} columns.")
    if keep.dtype != torch.bool or keep.shape[-1:] != (graph.rows,):
        raise InputError(f"keep must be bool [K] [{graph.rows}], not {keep.dtype} {tuple(keep.shape)}.")
    return _joined(copies, keep, 1, x.device)


def _joined(copies: int | None, other: Tensor, dims: int, device: torch.device) -> int | None:
    """K of the tensors so far and of `other`, which has `dims` dimensions without it."""
    if other.device != device:
        raise InputError(f"All tensors must be on one device, not on {device} and {other.device}.")
    if other.dim() == dims:
        return copies
    if other.dim() != dims + 1 or copies not in (None, other.shape[0]):
        raise InputError(f"A tensor {tuple(other.shape)} does not fit the {copies or 'single'} copies of the others.")
    return other.shape[0]


# The same ops for torch.compile, torch.export and opcheck. Tensors only, so the graph goes in as its arrays.

_GRAPHS: OrderedDict[tuple[Any, ...], Csr] = OrderedDict()


def _graph_of(indptr: Tensor, indices: Tensor, columns: int) -> Csr:
    """The Csr of these arrays: one of the last eight, unless they have changed, so that nothing is prepared twice."""
    arrays = ((t.data_ptr(), t._version, t.shape, t.dtype, t.device) for t in (indptr, indices))
    key = (*arrays, columns)
    graph = _GRAPHS.get(key)  # an entry keeps its arrays, so that their memory is not given to others
    if graph is None:
        graph = _GRAPHS[key] = Csr(indptr, indices, columns)
        if len(_GRAPHS) > 8:
            _GRAPHS.popitem(last=False)
    return graph


@torch.library.custom_op("onp::spmm", mutates_args=())
def _spmm(
    indptr: Tensor, indices: Tensor, columns: int, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None
) -> Tensor:
    return spmm(_graph_of(indptr, indices, columns), weight, x, reduce, keep)


@torch.library.custom_op("onp::spmm_backward", mutates_args=())
def _spmm_backward(
    grad: Tensor,
    indptr: Tensor,
    indices: Tensor,
    columns: int,
    weight: Tensor | None,
    x: Tensor,
    reduce: str,
    keep: Tensor | None,
) -> list[Tensor]:
    leaves = _leaves([x] if weight is None else [x, weight])
    with torch.enable_grad():
        out = spmm(_graph_of(indptr, indices, columns), None if weight is None else leaves[1], leaves[0], reduce, keep)
    return _gradients(out, leaves, grad)


@torch.library.custom_op("onp::edge_softmax", mutates_args=())
def _edge_softmax(indptr: Tensor, indices: Tensor, columns: int, score: Tensor, keep: Tensor | None) -> Tensor:
    return edge_softmax(_graph_of(indptr, indices, columns), score, keep)


@torch.library.custom_op("onp::edge_softmax_backward", mutates_args=())
def _edge_softmax_backward(
    grad: Tensor, indptr: Tensor, indices: Tensor, columns: int, score: Tensor, keep: Tensor | None
) -> list[Tensor]:
    leaves = _leaves([score])
    with torch.enable_grad():
        out = edge_softmax(_graph_of(indptr, indices, columns), leaves[0], keep)
    return _gradients(out, leaves, grad)


@torch.library.custom_op("onp::attention", mutates_args=())
def _attention(
    indptr: Tensor,
    indices: Tensor,
    columns: int,
    source: Tensor,
    target: Tensor,
    att: Tensor,
    slope: float,
    keep: Tensor | None,
) -> Tensor:
    return attention(_graph_of(indptr, indices, columns), source, target, att, slope, keep)


@torch.library.custom_op("onp::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    indptr: Tensor,
    indices: Tensor,
    columns: int,
    source: Tensor,
    target: Tensor,
    att: Tensor,
    slope: float,
    keep: Tensor | None,
) -> list[Tensor]:
    leaves = _leaves([source, target, att])
    with torch.enable_grad():
        out = attention(_graph_of(indptr, indices, columns), leaves[0], leaves[1], leaves[2], slope, keep)
    return _gradients(out, leaves, grad)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _gradients(out: Tensor, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    return [found.contiguous() for found in torch.autograd.grad(out, leaves, grad)]


def _batched(rest: tuple[int, ...], *tensors: tuple[Tensor | None, int]) -> tuple[int, ...]:
    """`rest` after K, where one of the tensors has more than its number of dimensions."""
    return next(((t.shape[0], *rest) for t, dims in tensors if t is not None and t.dim() > dims), rest)


@_spmm.register_fake
def _(indptr, indices, columns, weight, x, reduce, keep):
    return x.new_empty(_batched((indptr.shape[0] - 1, x.shape[-1]), (x, 2), (weight, 1), (keep, 1)))


@_spmm_backward.register_fake
def _(grad, indptr, indices, columns, weight, x, reduce, keep):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in ([x] if weight is None else [x, weight])]


@_edge_softmax.register_fake
def _(indptr, indices, columns, score, keep):
    return score.new_empty(_batched(score.shape[-2:], (score, 2), (keep, 1)))


@_edge_softmax_backward.register_fake
def _(grad, indptr, indices, columns, score, keep):
    return [torch.empty_like(score, memory_format=torch.contiguous_format)]


@_attention.register_fake
def _(indptr, indices, columns, source, target, att, slope, keep):
    return source.new_empty(_batched((indptr.shape[0] - 1, *att.shape), (source, 3), (target, 3), (keep, 1)))


@_attention_backward.register_fake
def _(grad, indptr, indices, columns, source, target, att, slope, keep):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (source, target, att)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [value for value in inputs if not isinstance(value, Tensor)]


def _saved(ctx: Any) -> list[Any]:
    tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
    return [next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor]


def _spmm_gradient(ctx: Any, grad: Tensor):
    grad_x, *grad_weight = torch.ops.onp.spmm_backward(grad, *_saved(ctx))
    return None, None, None, *(grad_weight or [None]), grad_x, None, None


def _edge_softmax_gradient(ctx: Any, grad: Tensor):
    return None, None, None, *torch.ops.onp.edge_softmax_backward(grad, *_saved(ctx)), None


def _attention_gradient(ctx: Any, grad: Tensor):
    return None, None, None, *torch.ops.onp.attention_backward(grad, *_saved(ctx)), None, None


_spmm.register_autograd(_spmm_gradient, setup_context=_save)
_edge_softmax.register_autograd(_edge_softmax_gradient, setup_context=_save)
_attention.register_autograd(_attention_gradient, setup_context=_save)
