"""The ops on torch-scatter and torch-sparse, which bring their own gradients; copies run one after the other.

torch-sparse (https://github.com/rusty1s/pytorch_sparse) multiplies; what it has no op for, torch-scatter
(https://github.com/rusty1s/pytorch_scatter), which it needs itself, does. Both want int64 indices.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.native import module
from onp.errors import InputError
from onp.search.message_passing.csr import Csr


def spmm(
    backend: str, graph: Csr, weight: Tensor | None, x: Tensor, reduce: str, keep: Tensor | None, copies: int | None
) -> Tensor:
    """`message_passing.ops.spmm`, whose checks it relies on; `copies`: K, or None where no tensor has that dimension."""
    library = _library(backend)

    def one(weight: Tensor | None, x: Tensor, keep: Tensor | None) -> Tensor:
        indptr, indices, left = _subgraph(graph, keep)
        if weight is not None:
            weight = weight.to(x.dtype) if left is None else weight.to(x.dtype)[left]
        if backend == "torch-sparse":
            sizes = (graph.rows, graph.columns)
            matrix = library.SparseTensor(rowptr=indptr, col=indices, value=weight, sparse_sizes=sizes, is_sorted=True)
            return library.matmul(matrix, x, reduce)
        messages = x.index_select(0, indices)
        return library.segment_csr(messages if weight is None else messages * weight[:, None], indptr, reduce=reduce)

    return _copy_by_copy(one, copies, (weight, 1), (x, 2), (keep, 1))


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None, copies: int | None) -> Tensor:
    """`message_passing.ops.edge_softmax`."""

    def one(score: Tensor, keep: Tensor | None) -> Tensor:
        indptr, _, left = _subgraph(graph, keep)
        alpha = _softmax(score if left is None else score[left], indptr)
        return alpha if left is None else torch.zeros_like(score).index_put((left,), alpha)

    return _copy_by_copy(one, copies, (score, 2), (keep, 1))


def attention(
    graph: Csr, source: Tensor, target: Tensor, att: Tensor, slope: float, keep: Tensor | None, copies: int | None
) -> Tensor:
    """`message_passing.ops.attention`."""
    library = _library("torch-scatter")

    def one(source: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
        indptr, indices, _ = _subgraph(graph, keep)
        sent = source.index_select(0, indices)
        z = F.leaky_relu(sent + library.gather_csr(target, indptr), slope)
        alpha = _softmax((z * att).sum(-1), indptr).to(source.dtype)
        return library.segment_csr(sent * alpha[..., None], indptr)

    return _copy_by_copy(one, copies, (source, 3), (target, 3), (keep, 1))


def _library(backend: str) -> ModuleType:
    found, problem = module(backend)
    if found is None:
        raise InputError(f"The {backend} backend was asked for, but {problem}.")
    return found


def _softmax(score: Tensor, indptr: Tensor) -> Tensor:
    library = _library("torch-scatter")
    most = library.segment_csr(score.detach(), indptr, reduce="max")
    power = (score - library.gather_csr(most, indptr)).exp()
    return power / library.gather_csr(library.segment_csr(power, indptr), indptr)


def _subgraph(graph: Csr, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """indptr and indices, int64, of the edges that `keep` [V] leaves, and where they are in the whole graph, bool [E]."""
    if keep is None:
        return graph.indptr.long(), graph.indices.long(), None
    left = keep[graph.indices] & keep[graph.targets()]
    before = F.pad(left.long().cumsum(0), (1, 0))
    return before[graph.indptr.long()], graph.indices[left].long(), left


def _copy_by_copy(one: Callable[..., Tensor], copies: int | None, *arguments: tuple[Tensor | None, int]) -> Tensor:
    """`one` for every copy, stacked. An argument comes with its number of dimensions without the copies."""

    def of(copy: int) -> list[Tensor | None]:
        return [t if t is None or t.dim() == dims else t[copy] for t, dims in arguments]

    return one(*of(0)) if copies is None else torch.stack([one(*of(copy)) for copy in range(copies)])
