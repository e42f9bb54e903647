"""Message passing over CSR graphs: spmm, edge_softmax and attention, differentiable, on a backend of your choice.

`onp_kernels.reference_graph` defines each op in plain torch; csrc/ computes it in float32 and bfloat16 on CPU and CUDA.
Each op works on K copies of a graph at once, which share its edges and differ in features, weights or pruned nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.search.message_passing import eager, registered
from onp.search.message_passing.csr import Csr

REDUCTIONS = eager.REDUCTIONS


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

    Shapes and dtypes: `onp_kernels.reference_graph.spmm`. Differentiable once in weight and x.
    `backend`: one of `backend.BACKENDS`, "auto" or None (see `backend.choose`); compiled code takes None. The native
    one computes in float32 and bfloat16, adding in float32; under "auto" other dtypes run in torch.

    On the native backend the terms of a row are added in an order that does not depend on the number of threads: results
    repeat bit for bit, gradients too.

    Raises InputError for shapes, dtypes or devices that do not fit, and for a graph whose edges lead outside.
    """
    if torch.compiler.is_compiling():
        return registered.spmm(graph.indptr, graph.indices, graph.columns, weight, x, reduce, keep)
    return eager.spmm(graph, weight, x, reduce, keep, backend)


def edge_softmax(graph: Csr, score: Tensor, keep: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """`out[e] = exp(score[e]) / sum of exp(score) over the edges of e's row`, for each of H columns of scores.

    Shapes and dtypes: `onp_kernels.reference_graph.edge_softmax`. Differentiable once. Backends, repeatability and errors as
    for `spmm`.
    """
    if torch.compiler.is_compiling():
        return registered.edge_softmax(graph.indptr, graph.indices, graph.columns, score, keep)
    return eager.edge_softmax(graph, score, keep, backend)


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

    Shapes and dtypes: `onp_kernels.reference_graph.attention`. Differentiable once in source, target and att. Backends,
    repeatability and errors as for `spmm`.
    """
    if torch.compiler.is_compiling():
        return registered.attention(graph.indptr, graph.indices, graph.columns, source, target, att, slope, keep)
    return eager.attention(graph, source, target, att, slope, keep, backend)
