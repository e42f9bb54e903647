"""The contract of message passing in plain torch: what the compiled versions must return, in any floating dtype.

Slow on purpose where that is plainer; also the torch backend of the ops: right on every device.
Letters: V rows that receive, U rows of x that send, E edges, F features, H heads of C channels. Every op works on K copies of a
graph at once, which share its edges: arguments marked [K] may have a leading dimension K or go without, and so does the result
if all of them do. Row v owns the edges indptr[v] .. indptr[v + 1] - 1; edge e reads row indices[e].

keep: bool [K] [V] or None, for graphs with V = U. A pruned node (False) neither sends nor receives: its edges are left out
and its row of the result is zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spmm(
    indptr: Tensor, indices: Tensor, weight: Tensor | None, x: Tensor, reduce: str = "sum", keep: Tensor | None = None
) -> Tensor:
    """Weighted gather-reduce: `out[v] = sum over the edges e of row v of weight[e] * x[indices[e]]`.

    `mean` divides by the number of edges left, `max` is the largest term of each feature (a NaN wins; the gradient goes to
    the first edge that has it).

    | argument | shape          | dtype        | meaning                                          |
    |----------|----------------|--------------|--------------------------------------------------|
    | indptr   | [V + 1]        | int32, int64 | row v owns edges indptr[v] .. indptr[v + 1] - 1  |
    | indices  | [E]            | as indptr    | the row of x an edge reads                       |
    | weight   | [K] [E], None  | as x, or f32 | None: every weight is one                        |
    | x        | [K] [U, F]     | floating     |                                                  |
    | keep     | [K] [V], None  | bool         | False: neither sends nor receives                |
    | returns  | [K] [V, F]     | as x         | zero for a row without edges                     |
    """
    rows, left = _rows(indptr, x.device), _left(indptr, indices, keep)
    messages = x.index_select(-2, indices)
    if weight is not None:
        messages = messages * weight[..., None]
    if left is not None:
        messages, left = torch.broadcast_tensors(messages, left[..., None])
        messages = torch.where(left, messages, 0)
    shape = (*messages.shape[:-2], indptr.shape[0] - 1, messages.shape[-1])
    if reduce == "max":
        return _max(rows, messages, left, shape).to(x.dtype)
    out = messages.new_zeros(shape).index_add(-2, rows, messages)
    if reduce == "mean":
        ones = messages.new_ones(messages.shape[-2], 1) if left is None else left[..., :1].to(messages.dtype)
        out = out / ones.new_zeros(*ones.shape[:-2], shape[-2], 1).index_add(-2, rows, ones).clamp(min=1)
    return out.to(x.dtype)


def edge_softmax(indptr: Tensor, indices: Tensor, score: Tensor, keep: Tensor | None = None) -> Tensor:
    """`out[e] = exp(score[e]) / sum of exp(score) over the edges of e's row`; 0 for an edge left out.

    | argument | shape         | dtype    |
    |----------|---------------|----------|
    | score    | [K] [E, H]    | floating |
    | keep     | [K] [V], None | bool     |
    | returns  | [K] [E, H]    | as score |
    """
    rows, left = _rows(indptr, score.device), _left(indptr, indices, keep)
    if left is not None:
        score, left = torch.broadcast_tensors(score, left[..., None])
        score = torch.where(left, score, float("-inf"))
    shape = (*score.shape[:-2], indptr.shape[0] - 1, score.shape[-1])
    where = rows[:, None].expand(score.shape)
    most = score.new_zeros(shape).scatter_reduce(-2, where, score.detach(), "amax", include_self=False)
    raised = score - most.index_select(-2, rows)
    power = raised.exp() if left is None else torch.where(left, raised, float("-inf")).exp()
    total = score.new_zeros(shape).index_add(-2, rows, power).index_select(-2, rows)
    return power / (total if left is None else torch.where(total == 0, 1, total))


def attention(
    indptr: Tensor,
    indices: Tensor,
    source: Tensor,
    target: Tensor,
    att: Tensor,
    slope: float = 0.2,
    keep: Tensor | None = None,
) -> Tensor:
    """GATv2 (https://arxiv.org/abs/2105.14491, equation 7): softmax of scores over a row's edges, then the weighted sum.

    `score[e, h] = <att[h], leaky_relu(source[j, h] + target[i, h])>` for the edge e from j to i;
    `out[i, h] = sum over the edges of row i of edge_softmax(score)[e, h] * source[j, h]`.

    | argument | shape         | dtype        | meaning                             |
    |----------|---------------|--------------|-------------------------------------|
    | source   | [K] [U, H, C] | floating     | what nodes send                     |
    | target   | [K] [V, H, C] | as source    | what receivers add before the score |
    | att      | [H, C]        | as source, or f32 |                                |
    | slope    | float         |              | of leaky_relu below zero            |
    | keep     | [K] [V], None | bool         | False: neither sends nor receives   |
    | returns  | [K] [V, H, C] | as source    | zero for a row without edges        |
    """
    rows = _rows(indptr, source.device)
    sent = source.index_select(-3, indices)
    z = F.leaky_relu(sent + target.index_select(-3, rows), slope)
    alpha = edge_softmax(indptr, indices, (z * att).sum(-1), keep)
    messages = sent * alpha[..., None]
    left = _left(indptr, indices, keep)
    if left is not None:  # a pruned sender's features may be anything, NaN too
        messages = torch.where(left[..., None, None], messages, 0)
    shape = (*messages.shape[:-3], indptr.shape[0] - 1, *messages.shape[-2:])
    return messages.new_zeros(shape).index_add(-3, rows, messages).to(source.dtype)


def _rows(indptr: Tensor, device: torch.device) -> Tensor:
    """The row each edge belongs to, int64 [E]."""
    degree = indptr.diff()
    return torch.repeat_interleave(torch.arange(degree.shape[0], device=device), degree)


def _left(indptr: Tensor, indices: Tensor, keep: Tensor | None) -> Tensor | None:
    """The edges that `keep` leaves, bool [K] [E]."""
    if keep is None:
        return None
    return keep.index_select(-1, indices) & keep.index_select(-1, _rows(indptr, keep.device))


def _max(rows: Tensor, messages: Tensor, left: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The largest message per row and feature, taken from the first edge that has it, so that the gradient goes there."""
    edges = messages.shape[-2]
    where = rows[:, None].expand(messages.shape)
    found = messages.detach() if left is None else torch.where(left, messages.detach(), float("-inf"))
    best = found.new_full(shape, float("-inf")).scatter_reduce(-2, where, found, "amax").index_select(-2, rows)
    wins = (found == best) | (found.isnan() & best.isnan())
    wins = wins if left is None else wins & left
    number = torch.arange(edges, device=messages.device)[:, None].expand(messages.shape)
    first = torch.full(shape, edges, device=messages.device)
    first = first.scatter_reduce(-2, where, torch.where(wins, number, edges), "amin")
    padded = torch.cat((messages, messages.new_zeros(*messages.shape[:-2], 1, messages.shape[-1])), -2)
    return padded.gather(-2, first)
