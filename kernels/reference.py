"""The contract of every op in plain torch: what the compiled versions must return, in any floating dtype.

Slow on purpose where that is plainer. Those of message passing are also the ops' torch backend: right on every device.
Letters of message passing: V rows that receive, U rows of x that send, E edges, F features, H heads of C channels. Every op
works on K copies of a graph at once, which share its edges: arguments marked [K] may have a leading dimension K or go without,
and so does the result if all of them do. Row v owns the edges indptr[v] .. indptr[v + 1] - 1; edge e reads row indices[e].

keep: bool [K] [V] or None, for graphs with V = U. A pruned node (False) neither sends nor receives: its edges are left out
and its row of the result is zero.

Letters of convolution: B masks, N images, H x W positions, C input channels, K filters of R x S taps. Values are channels-last,
[B, N, H, W, C]; a leading dimension marked [B|1] may be 1 where all masks share one value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Probabilities and divergences that `head` adds up are counted in units of 1 / PROBABILITY.
PROBABILITY = 2.0**40
# Nats of one image: more than any sure mistake need count, and finite where a network is ruined.
MOST_DIVERGENCE = 10.0


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


def masked_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    keep: Tensor | None = None,
    residual: Tensor | None = None,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    low: float = 0.0,
    high: float = float("inf"),
) -> Tensor:
    """`activation(keep * (conv2d(x, weight) + bias) + residual)` under every mask; sums are float32 whatever the inputs are.

    | argument | shape               | dtype          | meaning                                                        |
    |----------|---------------------|----------------|----------------------------------------------------------------|
    | x        | [B|1, N, H, W, C]   | f16, bf16, f32 | any strides                                                    |
    | weight   | [B|1, K, R, S, C]   | as x           | from `pack_filters` if inputs or outputs are given             |
    | bias     | [B|1, K]            | f32            | the folded norm's shift                                        |
    | keep     | [B|1, K], None      | bool           | False: a pruned filter, zero before the residual is added      |
    | residual | [B|1, N, OH, OW, K] | as x           |                                                                |
    | inputs   | [B|1], None         | int32          | x and weight are zero from this channel to a multiple of 64    |
    | outputs  | [B], None           | int32          | filters to compute; zero behind them to a multiple of 64, then |
    |          |                     |                | unspecified (here zero)                                        |
    | returns  | [B, N, OH, OW, K]   | as x           |                                                                |

    `activation`: "none", "clamp" (between `low` and `high`: relu, relu6, hardtanh), "silu", "hardswish".
    """
    B = max(len(tensor) for tensor in (x, weight, bias, keep, residual, inputs, outputs) if tensor is not None)
    rows = []
    for b in range(B):
        x_b, weight_b, bias_b = (tensor[b % len(tensor)] for tensor in (x, weight, bias))
        if inputs is not None:
            x_b, weight_b = (tensor[..., : int(inputs[b % len(inputs)])] for tensor in (x_b, weight_b))
        nchw = F.conv2d(x_b.permute(0, 3, 1, 2), weight_b.permute(0, 3, 1, 2), bias_b.to(x.dtype), stride, padding, dilation)
        y = nchw.permute(0, 2, 3, 1)
        if keep is not None:
            y = torch.where(keep[b % len(keep)], y, 0)
        if residual is not None:
            y = y + residual[b % len(residual)]
        y = _activate(y, activation, low, high)
        if outputs is not None:
            y = torch.where(torch.arange(y.shape[3], device=y.device) < outputs[b], y, 0)
        rows.append(y)
    return torch.stack(rows)


def kept_channels(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The kept channels of each mask, in order: `keep` bool `[B, K]` -> index int32 `[B, K]` and count int32 `[B]`.

    What lies behind the first `count[b]` entries of `index[b]` is unspecified (here: the pruned channels).
    """
    return (~keep).to(torch.int8).argsort(dim=1, stable=True).int(), keep.sum(1, dtype=torch.int32)


def pack_filters(
    weight: Tensor, bias: Tensor, rows: tuple[Tensor, Tensor] | None, columns: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The kept rows and columns of `weight` `[K, R, S, C]` and `bias` `[K]` moved together, zero behind them.

    `rows` and `columns` are what `kept_channels` gives, with B or 1 masks, or None for all. Returns `[B, K, R, S, C]` and
    `[B, K]`; rows behind the kept ones and columns from the next multiple of 64 on are unspecified (here zero).
    """
    B = max(len(channels[1]) for channels in (rows, columns) if channels is not None)
    packed, packed_bias = weight.new_zeros(B, *weight.shape), bias.new_zeros(B, *bias.shape)
    for b in range(B):
        k, c = _of_mask(rows, b, weight.shape[0]), _of_mask(columns, b, weight.shape[3])
        packed[b, : len(k), :, :, : len(c)] = weight[k][..., c]
        packed_bias[b, : len(k)] = bias[k]
    return packed, packed_bias


def scale_act(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    low: float = 0.0,
    high: float = float("inf"),
) -> Tensor:
    """`activation(x * scale + shift + residual)`: x `[B|1, ..., C]`, scale and shift `[B|1, C]` of any dtype.

    A channel whose scale is zero counts as zero whatever x holds.
    """
    y = x
    if scale is not None:
        scale = scale.view(len(scale), *[1] * (x.dim() - 2), -1).to(x.dtype)
        y = torch.where(scale == 0, 0, y * scale)
    if shift is not None:
        y = y + shift.view(len(shift), *[1] * (x.dim() - 2), -1).to(x.dtype)
    return _activate(y if residual is None else y + residual, activation, low, high)


def tap_means(
    x: Tensor,
    size: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """What each tap of a filter sees on average: x `[B, N, H, W, C]` -> `[B, N, R, S, C]`; of size (1, 1) a global mean.

    The mean over positions is linear, so that of a conv is the conv of these means: one output instead of OH x OW.
    """
    (B, N, H, W, C), (R, S) = x.shape, size
    images = x.reshape(B * N, H, W, C).permute(0, 3, 1, 2)
    taps = F.unfold(images, size, dilation, padding, stride).mean(2)
    return taps.view(B, N, C, R, S).permute(0, 1, 3, 4, 2).contiguous()


def head(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, expected: Tensor, column: Tensor, base: Tensor, sums: Tensor
) -> None:
    """Mean over positions, linear layer, argmax (the first of equals), comparison and counts, added to `sums`.

    | argument | shape                | dtype          | meaning                                                              |
    |----------|----------------------|----------------|----------------------------------------------------------------------|
    | x        | [B|1, N, P, C]       | f16, bf16, f32 | P positions; without a weight the logits, P = 1                      |
    | weight   | [classes, C], None   | f32            |                                                                      |
    | bias     | [classes], None      | f32            | as weight                                                            |
    | expected | [N]                  | int32          | the class that counts as a hit                                       |
    | column   | [N]                  | int32          | where an image counts, -1: nowhere                                   |
    | base     | [M, classes], M <= N | f32            | log-probabilities of another network on the first M images           |
    | sums     | [B, 3, columns]      | int64          | gets hits, and in units of 2^-40 the softmax probability of          |
    |          |                      |                | `expected`, and of the first M images KL(other network || this one), |
    |          |                      |                | 0 to `MOST_DIVERGENCE`                                               |

    The sums are integers, so they are the same in whatever order they are taken.
    """
    logits = x[:, :, 0] if weight is None or bias is None else F.linear(x.mean(2), weight.to(x.dtype), bias.to(x.dtype))
    hits = (logits.argmax(2) == expected).long()
    logs = logits.log_softmax(2)
    probability = logs.gather(2, expected.long()[None, :, None].expand(len(x), -1, 1))[:, :, 0].exp()
    divergence = torch.zeros_like(probability)
    first = len(base)
    divergence[:, :first] = (base.exp() * (base - logs[:, :first])).sum(2).clamp(0, MOST_DIVERGENCE)
    fixed = [(values.double() * PROBABILITY).round().long() for values in (probability, divergence)]
    values = torch.stack([hits, *fixed], 1)
    for i in range(sums.shape[2]):
        sums[:, :, i] += values[:, :, column == i].sum(2)


def _of_mask(channels: tuple[Tensor, Tensor] | None, b: int, total: int) -> Tensor:
    """The kept channels of mask `b`, int64; all of them without `channels`."""
    if channels is None:
        return torch.arange(total)
    return channels[0][b % len(channels[0]), : int(channels[1][b % len(channels[1])])].long()


def _activate(y: Tensor, activation: str, low: float, high: float) -> Tensor:
    if activation == "clamp":
        return y.clamp(low, high)
    return {"none": lambda: y, "silu": lambda: F.silu(y), "hardswish": lambda: F.hardswish(y)}[activation]()
