"""Message passing over CSR graphs: the contract, its gradients, and the hand-over to a backend.

`onp_kernels.reference` says in plain torch what each op returns; csrc/ computes it for float32 on CPU and CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onp import backend as backends
from onp.errors import InputError
from onp_kernels import reference


@dataclass(frozen=True, eq=False)
class Csr:
    """The edges of a graph, sorted by the row that receives them.

    indptr:  int32 or int64 [V + 1]; row v owns edges indptr[v] .. indptr[v + 1] - 1
    indices: same dtype [E]; the source row an edge reads
    columns: number of source rows U (V for a square graph)
    order:   int64 [E] or None; `order[e]` is the position edge e had where the edges came from, so per-edge values
             given in that order become this graph's by `values[order]`. None: the same order.
    """

    indptr: Tensor
    indices: Tensor
    columns: int
    order: Tensor | None = None

    @staticmethod
    def from_edges(source: Tensor, target: Tensor, rows: int, columns: int | None = None) -> Csr:
        """Edges source[e] -> target[e] (int64 [E] each) from `columns` (default: rows) sources to `rows` targets.

        Edges of one target keep their order. Raises InputError if an end is out of range.
        """
        columns = rows if columns is None else columns
        if source.shape != target.shape or source.ndim != 1:
            raise InputError(f"source and target must be equally long vectors, not {source.shape} and {target.shape}.")
        for name, ends, count in (("source", source, columns), ("target", target, rows)):
            if ends.numel() and (int(ends.min()) < 0 or int(ends.max()) >= count):
                raise InputError(f"A {name} of an edge is outside 0..{count - 1}.")
        order = torch.argsort(target, stable=True)
        return Csr(_indptr(target[order], rows), source[order], columns, order)

    @property
    def rows(self) -> int:
        return self.indptr.shape[0] - 1

    def transpose(self) -> Csr:
        """The same edges sorted by source; `order` leads back to this graph's edges. Computed once and kept."""
        return self._transposed

    @cached_property
    def _transposed(self) -> Csr:
        return Csr(*_transpose(self.indptr, self.indices, self.columns))

    def spmm(self, weight: Tensor | None, x: Tensor, reduce: str = "sum", backend: str | None = None) -> Tensor:
        """`onp.ops.spmm` over this graph; the transposed graph that the gradient of x needs is built once and kept."""
        needs_transpose = x.requires_grad and torch.is_grad_enabled()
        transpose = self.transpose() if needs_transpose else None
        return spmm(self.indptr, self.indices, weight, x, reduce, transpose=transpose, backend=backend)


def spmm(
    indptr: Tensor,
    indices: Tensor,
    weight: Tensor | None,
    x: Tensor,
    reduce: str = "sum",
    *,
    transpose: Csr | None = None,
    backend: str | None = None,
) -> Tensor:
    """`out[v] = sum over the edges e of row v of weight[e] * x[indices[e]]`, divided by their number for `mean`.

    Shapes and dtypes: `onp_kernels.reference.spmm`. Differentiable once in x and weight. `transpose` is the graph by
    source (`Csr.transpose()`), needed for the gradient of x; without it every backward sorts the edges anew.
    `backend`: "native" (float32 only), "torch", "auto" or None (see `onp.backend.choose`).

    Edges of a row are added in their stored order: on the CPU, and on CUDA with the native backend, results repeat
    bit for bit.

    Raises InputError for shapes, dtypes or devices that do not fit, and on the CPU for edges outside the graph. On CUDA
    looking at the edges would mean waiting for the device: the native backend returns NaN in rows that have such edges.
    """
    _check(indptr, indices, weight, x, reduce)
    if torch.compiler.is_compiling():
        return torch.ops.onp.spmm(indptr, indices, weight, x, reduce)
    chosen = _backend_for(x, backend)
    if not torch.is_grad_enabled() or not (x.requires_grad or (weight is not None and weight.requires_grad)):
        return _forward(indptr, indices, weight, x, reduce, chosen)
    return _Spmm.apply(indptr, indices, weight, x, reduce, transpose, chosen)


class _Spmm(torch.autograd.Function):
    """The op for eager training: a registered op would cost more to dispatch than a small graph costs to reduce."""

    @staticmethod
    def forward(ctx: Any, indptr, indices, weight, x, reduce, transpose, chosen):
        ctx.save_for_backward(indptr, indices, weight, x if weight is not None and weight.requires_grad else None)
        ctx.columns, ctx.reduce, ctx.transpose, ctx.chosen = x.shape[0], reduce, transpose, chosen
        return _forward(indptr, indices, weight, x, reduce, chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        indptr, indices, weight, x = ctx.saved_tensors
        grad = _per_message(grad, indptr, ctx.reduce)
        grad_weight = grad_x = None
        if ctx.needs_input_grad[3]:
            t = ctx.transpose or Csr(*_transpose(indptr, indices, ctx.columns))
            t_weight = None if weight is None else weight.detach()[t.order]
            grad_x = _forward(t.indptr, t.indices, t_weight, grad, "sum", ctx.chosen)
        if ctx.needs_input_grad[2]:
            grad_weight = _weight_gradient(indptr, indices, x.detach(), grad)
        return None, None, grad_weight, grad_x, None, None, None


def _forward(indptr: Tensor, indices: Tensor, weight: Tensor | None, x: Tensor, reduce: str, chosen: str) -> Tensor:
    if chosen == "torch":
        if x.device.type == "cpu":
            _check_edges(indptr, indices, x.shape[0])
        return reference.spmm(indptr, indices, weight, x, reduce)
    native, _ = backends.native_module()
    assert native is not None
    x = x if x.stride(1) == 1 or x.shape[1] < 2 else x.contiguous()
    indptr, indices = indptr.contiguous(), indices.contiguous()
    weight = None if weight is None else weight.contiguous()
    rows, features = indptr.shape[0] - 1, x.shape[1]
    out = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    arguments = (
        *(indptr.data_ptr(), indices.data_ptr(), indptr.element_size()),
        *(0 if weight is None else weight.data_ptr(), x.data_ptr(), out.data_ptr()),
        *(rows, x.shape[0], indices.shape[0], features, x.stride(0), features, reduce == "mean"),
    )
    if x.is_cuda:
        with torch.cuda.device(x.device):
            native.spmm(*arguments, True, 1, torch.cuda.current_stream().cuda_stream)
        return out
    try:
        native.spmm(*arguments, False, torch.get_num_threads(), 0)
    except ValueError as error:
        raise InputError(f"The graph cannot be used: {error}.") from None
    return out


def _backend_for(x: Tensor, requested: str | None) -> str:
    chosen = backends.choose(requested, x.device.type)
    if chosen == "native" and x.dtype != torch.float32:
        if requested == "native":
            raise InputError(f"The native backend computes in float32, not {x.dtype}: convert x or choose torch.")
        return "torch"
    return chosen


def _check(indptr: Tensor, indices: Tensor, weight: Tensor | None, x: Tensor, reduce: str) -> None:
    if reduce != "sum" and reduce != "mean":
        raise InputError(f"reduce={reduce!r} is not known: choose sum or mean.")
    if indptr.ndim != 1 or indices.ndim != 1 or indptr.shape[0] < 1:
        raise InputError(f"indptr [V + 1] and indices [E] must be vectors, not {indptr.shape} and {indices.shape}.")
    if indptr.dtype != indices.dtype or indptr.dtype not in (torch.int64, torch.int32):
        raise InputError(f"indptr and indices must both be int64 or int32, not {indptr.dtype} and {indices.dtype}.")
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"x must be floating point [U, F], not {x.dtype} {tuple(x.shape)}.")
    if weight is not None and (weight.shape != indices.shape or weight.dtype != x.dtype):
        raise InputError(f"weight must be {x.dtype} [{indices.shape[0]}], not {weight.dtype} {tuple(weight.shape)}.")
    tensors = (indptr, indices) if weight is None else (indptr, indices, weight)
    if any(tensor.device != x.device for tensor in tensors):
        raise InputError(f"The graph and x must be on one device: x is on {x.device}.")


def _check_edges(indptr: Tensor, indices: Tensor, columns: int) -> None:
    """The checks that csrc/ makes before it reads through the arrays, for the torch backend."""
    if int(indptr[0]) != 0 or int(indptr[-1]) != indices.shape[0] or bool((indptr.diff() < 0).any()):
        raise InputError("The graph cannot be used: indptr must rise from 0 to the number of edges.")
    if indices.shape[0] and (int(indices.min()) < 0 or int(indices.max()) >= columns):
        raise InputError("The graph cannot be used: an index is outside the rows of x.")


def _indptr(sorted_rows: Tensor, rows: int) -> Tensor:
    """Row starts [rows + 1] of edges whose receiving rows are given in rising order."""
    bounds = torch.arange(rows + 1, device=sorted_rows.device, dtype=sorted_rows.dtype)
    return torch.searchsorted(sorted_rows, bounds, out_int32=sorted_rows.dtype == torch.int32)


def _transpose(indptr: Tensor, indices: Tensor, columns: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """indptr, indices, columns, order of the same edges sorted by source, edges of one source in their old order."""
    order = torch.argsort(indices, stable=True)
    return _indptr(indices[order], columns), _edge_rows(indptr, indices)[order], indptr.shape[0] - 1, order


def _edge_rows(indptr: Tensor, indices: Tensor) -> Tensor:
    """The row each edge belongs to, [E]."""
    rows = torch.arange(indptr.shape[0] - 1, device=indptr.device, dtype=indptr.dtype)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=indices.shape[0])


def _per_message(grad: Tensor, indptr: Tensor, reduce: str) -> Tensor:
    """The gradient of a row's sum, from the gradient of its output."""
    return grad / indptr.diff().clamp(min=1).to(grad.dtype)[:, None] if reduce == "mean" else grad


def _weight_gradient(indptr: Tensor, indices: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    return (grad.index_select(0, _edge_rows(indptr, indices)) * x.index_select(0, indices)).sum(1)


# The same op for torch.compile, torch.export and opcheck. Its gradient is made of registered ops only.


@torch.library.custom_op("onp::spmm", mutates_args=())
def _registered(indptr: Tensor, indices: Tensor, weight: Tensor | None, x: Tensor, reduce: str) -> Tensor:
    _check(indptr, indices, weight, x, reduce)
    return _forward(indptr, indices, weight, x, reduce, _backend_for(x, None))


@_registered.register_fake
def _fake(indptr, indices, weight, x, reduce):
    return x.new_empty((indptr.shape[0] - 1, x.shape[1]))


def _setup_context(ctx: Any, inputs, output) -> None:
    indptr, indices, weight, x, reduce = inputs
    ctx.save_for_backward(indptr, indices, weight, x)
    ctx.reduce = reduce


def _registered_backward(ctx: Any, grad):
    indptr, indices, weight, x = ctx.saved_tensors
    grad = _per_message(grad, indptr, ctx.reduce)
    grad_weight = grad_x = None
    if ctx.needs_input_grad[3]:
        t_indptr, t_indices, _, order = _transpose(indptr, indices, x.shape[0])
        grad_x = torch.ops.onp.spmm(t_indptr, t_indices, None if weight is None else weight[order], grad, "sum")
    if ctx.needs_input_grad[2]:
        grad_weight = _weight_gradient(indptr, indices, x, grad)
    return None, None, grad_weight, grad_x, None


_registered.register_autograd(_registered_backward, setup_context=_setup_context)
