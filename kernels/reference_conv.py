"""The contract of the evaluator's kernels in plain torch: what the Triton kernels must return, in any floating dtype.

Letters: B masks, N images, H x W positions, C input channels, K filters of R x S taps. Values are channels-last,
[B, N, H, W, C]; a leading dimension marked [B|1] may be 1 where all masks share one value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Probabilities and divergences that `head` adds up are counted in units of 1 / PROBABILITY.
PROBABILITY = 2.0**40
# Nats of one image: more than any sure mistake need count, and finite where a network is ruined.
MOST_DIVERGENCE = 10.0


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
