"""Which channels a mask keeps, and moving kept channels together; the contracts are in `reference_conv`."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from onp_kernels.common import activate, between, launch
from onp_kernels.tiles import elementwise_rows

# Packed values and filters are zero from the last kept channel up to a multiple of this, the largest block that a conv reduces
# over at once; what lies behind is neither written nor read.
PAD = tl.constexpr(64)


class Channels(NamedTuple):
    """`index` int32 `[B, K]`: the kept channels of every mask in order, anything behind them; `count` int32 `[B]`."""

    index: Tensor
    count: Tensor


@triton.jit
def kept_channels_kernel(keep, index, count, K, keep_b, BLOCK: tl.constexpr):
    i_b = tl.program_id(0)
    o_k = tl.arange(0, BLOCK)
    b_keep = (tl.load(keep + i_b * keep_b + o_k, mask=o_k < K, other=0) != 0).to(tl.int32)
    place = tl.cumsum(b_keep, 0) - 1
    tl.store(index + i_b * K + place, o_k, mask=b_keep != 0)
    tl.store(count + i_b, tl.sum(b_keep, 0))


def kept_channels(keep: Tensor) -> Channels:
    """`reference_conv.kept_channels`."""
    B, K = keep.shape
    keep = keep if keep.stride(1) == 1 else keep.contiguous()
    index = torch.empty(B, K, dtype=torch.int32, device=keep.device)
    count = torch.zeros(B, dtype=torch.int32, device=keep.device)
    if keep.numel():
        block = triton.next_power_of_2(K)
        launch(kept_channels_kernel, (B,), keep.view(torch.uint8), index, count, K, keep.stride(0), BLOCK=block, num_warps=4)
    return Channels(index, count)


@triton.jit(do_not_specialize=["taps"])
def pack_filters_kernel(
    weight,  # [K, taps, C]
    bias,  # [K]
    row_index,  # [B or 1, K] or None
    row_count,
    column_index,  # [B or 1, C] or None
    column_count,
    packed,  # [B, K, taps, C]
    packed_bias,  # [B, K]
    K,
    C,
    taps,
    row_index_b,
    row_count_b,
    column_index_b,
    column_count_b,
    BK: tl.constexpr,
    BC: tl.constexpr,
):
    i_b, i_k, i_c = tl.program_id(2), tl.program_id(0) // taps, tl.program_id(1)
    tap = tl.program_id(0) % taps
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    n_k, n_c, n_zero = K, C, C
    if row_index is not None:
        n_k = tl.load(row_count + i_b * row_count_b)
    if column_index is not None:
        n_c = tl.load(column_count + i_b * column_count_b)
        n_zero = tl.minimum(tl.cdiv(n_c, PAD) * PAD, C)
    row, column = o_k, o_c
    if row_index is not None:
        row = tl.load(row_index + i_b * row_index_b + o_k, mask=o_k < n_k, other=0)
    # Without a kept column too: a conv whose inputs are all pruned gives its bias.
    if (tap == 0) & (i_c == 0):
        tl.store(packed_bias + i_b * K + o_k, tl.load(bias + row, mask=o_k < n_k, other=0.0), mask=o_k < n_k)
    if (i_k * BK < n_k) & (i_c * BC < n_zero):
        if column_index is not None:
            column = tl.load(column_index + i_b * column_index_b + o_c, mask=o_c < n_c, other=0)
        inside = (o_k < n_k)[:, None] & (o_c < n_c)[None, :]
        b_w = tl.load(weight + (row * taps + tap)[:, None] * C + column[None, :], mask=inside, other=0.0)
        p_w = packed + i_b.to(tl.int64) * K * taps * C + (o_k * taps + tap)[:, None] * C + o_c[None, :]
        tl.store(p_w, b_w, mask=(o_k < n_k)[:, None] & (o_c < n_zero)[None, :])


def pack_filters(weight: Tensor, bias: Tensor, rows: Channels | None, columns: Channels | None) -> tuple[Tensor, Tensor]:
    """`reference_conv.pack_filters`; at least one of `rows` and `columns` is given."""
    K, R, S, C = weight.shape
    B = max(len(channels.count) for channels in (rows, columns) if channels is not None)
    packed = torch.empty(B, K, R, S, C, dtype=weight.dtype, device=weight.device)
    packed_bias = torch.zeros(B, K, dtype=bias.dtype, device=bias.device)
    if packed.numel():
        given = [part for channels in (rows, columns) for part in (channels or (None, None))]
        tile = {"BK": 16, "BC": 64}
        grid = (triton.cdiv(K, tile["BK"]) * R * S, triton.cdiv(C, tile["BC"]), B)
        launch(
            *(pack_filters_kernel, grid),
            *(weight.contiguous(), bias, *given, packed, packed_bias, K, C, R * S, *map(between, given)),
            **tile,
            num_warps=4,
        )
    return packed, packed_bias


@triton.jit(do_not_specialize=["M"])
def scale_act_kernel(
    x,  # [B or 1, M, C]
    scale,  # [B or 1, C] or None
    shift,  # [B or 1, C] or None
    residual,  # [B or 1, M, C] or None
    y,  # [B, M, C]
    M,
    C,
    x_b,
    scale_b,
    shift_b,
    residual_b,
    low,
    high,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_b = tl.program_id(2)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_c = o_c < C
    m_y = (o_m < M)[:, None] & m_c[None, :]
    o_y = o_m[:, None] * C + o_c[None, :]
    b_y = tl.load(x + i_b.to(tl.int64) * x_b + o_y, mask=m_y, other=0.0).to(tl.float32)
    if scale is not None:
        b_scale = tl.load(scale + i_b * scale_b + o_c, mask=m_c, other=0.0).to(tl.float32)
        # A pruned channel is zero whatever its value, infinities too.
        b_y = tl.where((b_scale == 0)[None, :], 0.0, b_y) * b_scale[None, :]
    if shift is not None:
        b_y += tl.load(shift + i_b * shift_b + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        b_y += tl.load(residual + i_b.to(tl.int64) * residual_b + o_y, mask=m_y, other=0.0).to(tl.float32)
    b_y = activate(b_y, low, high, ACTIVATION)
    tl.store(y + i_b.to(tl.int64) * M * C + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


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
    """`reference_conv.scale_act`."""
    B = max(len(tensor) for tensor in (x, scale, shift, residual) if tensor is not None)
    y = torch.empty(B, *x.shape[1:], dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = x.contiguous()
    scale = scale.view(torch.uint8) if scale is not None and scale.dtype == torch.bool else scale
    residual = None if residual is None else residual.contiguous()
    C = x.shape[-1]
    M = y[0].numel() // C
    tile = {"BM": elementwise_rows(x.device), "BC": min(128, triton.next_power_of_2(C))}
    grid = (triton.cdiv(M, tile["BM"]), triton.cdiv(C, tile["BC"]), B)
    launch(
        *(scale_act_kernel, grid),
        *(x, scale, shift, residual, y, M, C),
        *(between(x), between(scale), between(shift), between(residual), low, high),
        ACTIVATION=activation,
        **tile,
        num_warps=4,
    )
    return y
