"""The ops outside torch.compile: checks what is handed over, and runs it on the chosen backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onp.errors import InputError
from onp.search.message_passing import native_attention, torch_scatter
from onp.search.message_passing.backend import choose
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.native_spmm import PreparedSpmm
from onp_kernels import reference_graph as reference

REDUCTIONS = ("sum", "mean", "max")
_NATIVE = (torch.float32, torch.bfloat16)


def spmm(graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None, backend: str | None) -> Tensor:
    """`message_passing.ops.spmm`. Arguments of one layout are checked once: on small graphs checks take longer than sums."""
    layout = (
        *(reduce, backend, *_layout(x)),
        None if weight is None else _layout(weight),
        None if keep is None else _layout(keep),
    )
    prepared = graph.prepared.get(layout)
    if prepared is not None:
        return prepared(graph, weight, x, keep)
    copies = _check_spmm(graph, weight, x, reduce, keep)
    chosen = _backend_for(x, backend)
    if chosen == "native":
        prepared = graph.prepared[layout] = PreparedSpmm(graph, weight, x, reduce, keep, copies)
        return prepared(graph, weight, x, keep)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.spmm(graph.indptr, graph.indices, weight, x, reduce, keep)
    return torch_scatter.spmm(chosen, graph, weight, x, reduce, keep, copies)


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, backend: str | None) -> Tensor:
    """`message_passing.ops.edge_softmax`."""
    if score.dim() not in (2, 3) or score.shape[-2] != graph.edges or not score.is_floating_point():
        raise InputError(f"score must be floating point [K] [{graph.edges}, H], not {score.dtype} {tuple(score.shape)}.")
    copies = _copies(graph, score, 2, score, keep)
    chosen = _backend_for(score, backend)
    if chosen == "native":
        return native_attention.edge_softmax(graph, score, keep, copies)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.edge_softmax(graph.indptr, graph.indices, score, keep)
    return torch_scatter.edge_softmax(graph, score, keep, copies)


def attention(
    graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, backend: str | None
) -> Tensor:
    """`message_passing.ops.attention`. Arguments of one layout are checked once, as in spmm."""
    layout = (
        *(slope, backend, *_layout(source), *_layout(target), *_layout(att)),
        None if keep is None else _layout(keep),
    )
    prepared = graph.prepared.get(layout)
    if prepared is not None:
        return prepared(graph, source, target, att, keep)
    copies = _check_attention(graph, source, target, att, keep)
    chosen = _backend_for(source, backend)
    if chosen == "native":
        prepared = graph.prepared[layout] = native_attention.PreparedAttention(graph, source, target, att, slope, keep, copies)
        return prepared(graph, source, target, att, keep)
    graph.check()
    if chosen == "torch" or not graph.edges:
        return reference.attention(graph.indptr, graph.indices, source, target, att, slope, keep)
    return torch_scatter.attention(graph, source, target, att, slope, keep, copies)


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device


def _check_spmm(graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None) -> int | None:
    """K, or None where no tensor has that dimension; raises InputError for what does not fit."""
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
    return copies


def _check_attention(graph: Csr, source: Tensor, target: Tensor, att: Tensor, keep: Tensor | None) -> int | None:
    for name, features, nodes in (("source", source, graph.columns), ("target", target, graph.rows)):
        if features.dim() not in (3, 4) or features.shape[-3] != nodes or not features.is_floating_point():
            shape = tuple(features.shape)
            raise InputError(f"{name} must be floating point [K] [{nodes}, H, C], not {features.dtype} {shape}.")
    if source.shape[-2:] != target.shape[-2:] or source.dtype != target.dtype:
        raise InputError(f"source {tuple(source.shape)} and target {tuple(target.shape)} must agree in dtype, H and C.")
    if att.shape != source.shape[-2:] or att.dtype not in (source.dtype, torch.float32):
        raise InputError(f"att must be {source.dtype} or float32 {list(source.shape[-2:])}, not {att.dtype} {list(att.shape)}.")
    copies = _joined(_copies(graph, source, 3, source, keep), target, 3, source.device)
    return _joined(copies, att, 2, source.device)


def _backend_for(x: Tensor, requested: str | None) -> str:
    chosen = choose(requested, x.device.type)
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
