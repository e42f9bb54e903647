"""The ops as torch.compile, torch.export and opcheck see them: registered, and on tensors, so the graph goes in as arrays."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from onp.search.message_passing import eager
from onp.search.message_passing.csr import Csr

_GRAPHS: OrderedDict[tuple[Any, ...], Csr] = OrderedDict()


def _graph_of(indptr: Tensor, indices: Tensor, columns: int) -> Csr:
    """The Csr of these arrays: one of the last eight, unless they have changed, so that nothing is prepared twice."""
    arrays = ((t.data_ptr(), t._version, t.shape, t.stride(), t.dtype, t.device) for t in (indptr, indices))
    key = (*arrays, columns)
    graph = _GRAPHS.get(key)  # an entry keeps its arrays, so that their memory is not given to others
    if graph is None:
        graph = _GRAPHS[key] = Csr(indptr, indices, columns)
        if len(_GRAPHS) > 8:
            _GRAPHS.popitem(last=False)
    return graph


@torch.library.custom_op("onp::spmm", mutates_args=())
def spmm(
    indptr: Tensor, indices: Tensor, columns: int, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None
) -> Tensor:
    return eager.spmm(_graph_of(indptr, indices, columns), weight, x, reduce, keep, None)


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
        graph, weight = _graph_of(indptr, indices, columns), None if weight is None else leaves[1]
        out = eager.spmm(graph, weight, leaves[0], reduce, keep, None)
    return _gradients(out, leaves, grad)


@torch.library.custom_op("onp::edge_softmax", mutates_args=())
def edge_softmax(indptr: Tensor, indices: Tensor, columns: int, score: Tensor, keep: Tensor | None) -> Tensor:
    return eager.edge_softmax(_graph_of(indptr, indices, columns), score, keep, None)


@torch.library.custom_op("onp::edge_softmax_backward", mutates_args=())
def _edge_softmax_backward(
    grad: Tensor, indptr: Tensor, indices: Tensor, columns: int, score: Tensor, keep: Tensor | None
) -> list[Tensor]:
    leaves = _leaves([score])
    with torch.enable_grad():
        out = eager.edge_softmax(_graph_of(indptr, indices, columns), leaves[0], keep, None)
    return _gradients(out, leaves, grad)


@torch.library.custom_op("onp::attention", mutates_args=())
def attention(
    indptr: Tensor,
    indices: Tensor,
    columns: int,
    source: Tensor,
    target: Tensor,
    att: Tensor,
    slope: float,
    keep: Tensor | None,
) -> Tensor:
    return eager.attention(_graph_of(indptr, indices, columns), source, target, att, slope, keep, None)


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
        out = eager.attention(_graph_of(indptr, indices, columns), leaves[0], leaves[1], leaves[2], slope, keep, None)
    return _gradients(out, leaves, grad)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _gradients(out: Tensor, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    return [found.contiguous() for found in torch.autograd.grad(out, leaves, grad)]


def _batched(rest: tuple[int, ...], *tensors: tuple[Tensor | None, int]) -> tuple[int, ...]:
    """`rest` after K, where one of the tensors has more than its number of dimensions."""
    return next(((t.shape[0], *rest) for t, dims in tensors if t is not None and t.dim() > dims), rest)


@spmm.register_fake
def _(indptr, indices, columns, weight, x, reduce, keep):
    return x.new_empty(_batched((indptr.shape[0] - 1, x.shape[-1]), (x, 2), (weight, 1), (keep, 1)))


@_spmm_backward.register_fake
def _(grad, indptr, indices, columns, weight, x, reduce, keep):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in ([x] if weight is None else [x, weight])]


@edge_softmax.register_fake
def _(indptr, indices, columns, score, keep):
    return score.new_empty(_batched(score.shape[-2:], (score, 2), (keep, 1)))


@_edge_softmax_backward.register_fake
def _(grad, indptr, indices, columns, score, keep):
    return [torch.empty_like(score, memory_format=torch.contiguous_format)]


@attention.register_fake
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


spmm.register_autograd(_spmm_gradient, setup_context=_save)
edge_softmax.register_autograd(_edge_softmax_gradient, setup_context=_save)
attention.register_autograd(_attention_gradient, setup_context=_save)
