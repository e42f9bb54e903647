"""The edges of a graph in compressed sparse rows, and what the ops prepare from them once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from onp.engine.native import native
from onp.errors import InputError

LARGEST_INT32 = torch.iinfo(torch.int32).max
SEGMENT = 256  # edges of a row that one CUDA warp adds up; longer rows are cut


@dataclass(frozen=True, eq=False)
class Csr:
    """The edges of a graph, sorted by the row that receives them. A value: later changes of its arrays are not seen.

    indptr:  int32 or int64 [V + 1]; row v owns edges indptr[v] .. indptr[v + 1] - 1
    indices: same dtype [E]; the source row an edge reads
    columns: number of source rows U (V for a square graph)
    order:   int64 [E] or None; `order[e]` is the position edge e had where the edges came from, so per-edge values
             given in that order become this graph's by `values[order]`. None: the same order.
    wide:    whether the compiled module gets int64 numbers even where int32 would do
    """

    indptr: Tensor
    indices: Tensor
    columns: int
    order: Tensor | None = None
    wide: bool = False

    @staticmethod
    def from_edges(source: Tensor, target: Tensor, rows: int, columns: int | None = None) -> Csr:
        """Edges source[e] -> target[e] (int64 or int32 [E] each) from `columns` (default: rows) sources to `rows` targets.

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

    @property
    def edges(self) -> int:
        return self.indices.shape[0]

    def transpose(self) -> Csr:
        """The same edges sorted by source; `order` leads back to this graph's edges. Computed once and kept."""
        return self._transposed

    def with_self_loops(self) -> Csr:
        """This square graph with one edge from every node to itself at the end of its row, in place of any it has.

        `order` is None: the edges are new ones. Raises InputError unless rows and columns are equal.
        """
        if self.rows != self.columns:
            raise InputError(f"Only a square graph has self-loops, not one of {self.rows} rows and {self.columns} columns.")
        target, nodes = self.targets(), torch.arange(self.rows, device=self.indices.device, dtype=self.indices.dtype)
        others = self.indices != target
        source = torch.cat((self.indices[others], nodes))
        graph = Csr.from_edges(source, torch.cat((target[others], nodes)), self.rows)
        return Csr(graph.indptr, graph.indices, self.columns, wide=self.wide)

    def targets(self) -> Tensor:
        """The row each edge belongs to, [E] in the dtype of indices."""
        return _targets(self.indptr, self.edges)

    @cached_property
    def _transposed(self) -> Csr:
        self.check()
        order = torch.argsort(self.indices, stable=True)
        return Csr(_indptr(self.indices[order], self.columns), self.targets()[order], self.rows, order, self.wide)

    def check(self) -> None:
        """Raises InputError unless the arrays describe edges between existing rows. Checked once."""
        assert self._checked

    @cached_property
    def _checked(self) -> bool:
        indptr, indices = self.indptr, self.indices
        if indptr.ndim != 1 or indices.ndim != 1 or indptr.shape[0] < 1:
            raise InputError(f"indptr [V + 1] and indices [E] must be vectors, not {indptr.shape} and {indices.shape}.")
        if indptr.dtype != indices.dtype or indptr.dtype not in (torch.int64, torch.int32):
            raise InputError(f"indptr and indices must both be int64 or int32, not {indptr.dtype} and {indices.dtype}.")
        if indptr.device != indices.device:
            raise InputError(f"indptr and indices must be on one device, not on {indptr.device} and {indices.device}.")
        if int(indptr[0]) != 0 or int(indptr[-1]) != self.edges or bool((indptr.diff() < 0).any()):
            raise InputError("The graph cannot be used: indptr must rise from 0 to the number of edges.")
        if self.edges and (int(indices.min()) < 0 or int(indices.max()) >= self.columns):
            raise InputError("The graph cannot be used: an index is outside the rows of x.")
        return True

    @cached_property
    def prepared(self) -> PreparedCalls:
        """The calls that `message_passing.ops` has prepared, by the layout of their arguments."""
        return PreparedCalls()

    @cached_property
    def native(self) -> Handle:
        """This graph as the compiled module sees it."""
        self.check()
        return Handle(self.indptr, self.indices, None, self.columns, self.wide)

    @cached_property
    def native_transposed(self) -> Handle:
        """The transposed graph, whose edges read their values where this graph has them."""
        back = self.transpose()
        assert back.order is not None
        return Handle(back.indptr, back.indices, back.order, back.columns, back.wide)


class PreparedCalls(dict[Any, Any]):
    """Calls by layout; a dict that is emptied before it holds more than 64 entries."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= 64:
            self.clear()
        super().__setitem__(key, value)


class Handle:
    """`onp_native.Graph` with the private copies of the arrays that it points to."""

    def __init__(self, indptr: Tensor, indices: Tensor, edge: Tensor | None, columns: int, wide: bool) -> None:
        self.rows, self.columns, self.edges = indptr.shape[0] - 1, columns, indices.shape[0]
        # Numbers of half the size leave more of a cache to the features. Copies, so that nobody can change what was checked.
        number = torch.int32 if not wide and max(self.rows, columns, self.edges) <= LARGEST_INT32 else torch.int64
        arrays = (indptr, indices) if edge is None else (indptr, indices, edge)
        self.arrays = [t.to(number, copy=True, memory_format=torch.contiguous_format) for t in arrays]
        pointers = [t.data_ptr() for t in self.arrays] + ([0] if edge is None else [])
        self.cut = row = None
        if indptr.is_cuda:
            self.cut, row = _segments(self.arrays[0]), _targets(self.arrays[0], self.edges)
            self.arrays.append(row)
            torch.cuda.current_stream(indptr.device).synchronize()  # other streams may use what this one has made
        more = [0, 0, 0] if self.cut is None else [t.data_ptr() for t in self.cut]
        sizes = (self.rows, columns, self.edges, self.arrays[0].element_size(), indptr.is_cuda)
        self.graph: Any = native().Graph(*pointers, *sizes, *more, self.segments, 0 if row is None else row.data_ptr())

    @property
    def segments(self) -> int:
        """Parts that rows are cut into on CUDA, where any is cut."""
        return 0 if self.cut is None else self.cut[0].shape[0]


def _targets(indptr: Tensor, edges: int) -> Tensor:
    """The row each edge belongs to."""
    rows = torch.arange(indptr.shape[0] - 1, device=indptr.device, dtype=indptr.dtype)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=edges)


def _segments(indptr: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows cut into segments of at most SEGMENT edges: row of each, start of each and the end, first segment of each row."""
    pieces = (indptr.diff().long() + SEGMENT - 1).div(SEGMENT, rounding_mode="floor").clamp(min=1)
    if not len(pieces) or int(pieces.max()) == 1:
        return None
    first = torch.cat((pieces.new_zeros(1), pieces.cumsum(0)))
    row = torch.repeat_interleave(pieces)
    begin = indptr.long()[row] + SEGMENT * (torch.arange(len(row), device=row.device) - first[row])
    return row.int(), torch.cat((begin, indptr[-1:].long())), first.int()


def _indptr(sorted_rows: Tensor, rows: int) -> Tensor:
    """Row starts [rows + 1] of edges whose receiving rows are given in rising order."""
    bounds = torch.arange(rows + 1, device=sorted_rows.device, dtype=sorted_rows.dtype)
    return torch.searchsorted(sorted_rows, bounds, out_int32=sorted_rows.dtype == torch.int32)
