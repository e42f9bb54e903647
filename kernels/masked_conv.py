"""Implicit-GEMM convolution of B masks in one launch; the contract is `reference_conv.masked_conv`.

How pruned channels are skipped. A matrix unit multiplies whole tiles, and loads reach it at full width only if 16 bytes lie
together, so picking kept channels one by one inside the loop would cost more than it saves. Here the *filters* are picked: for
every mask `onp_kernels.channels.pack_filters` moves the kept rows and columns of the weights together, once (about a hundredth
of the conv's time), the conv computes the first `outputs[b]` channels and stores them together, and the next conv reduces over
the first `inputs[b]` only. Both sides of the product shrink, in steps of a tile, and every load stays contiguous. What is added
to a residual sum keeps its place, since the sum's channels are not zero; there the mask is a factor in the epilogue.

One program computes a tile of outputs x filters of one mask; the programs of one row of tiles follow each other, so that the
activations they share are read from the L2 cache. Outputs are numbered position first and image last: a tile is one position
(or a few) of many images, and the taps of the filter that fall into the padding there are left out of the loop. On 4 x 4 maps
these are 31 % of a 3 x 3 filter's products. On large maps little falls into the padding, and a tile may instead be a patch of a
few images (`Tile.local`) with the taps as inner loop: what it loads and stores lies together.

A norm that reads the sum (pre-activation networks) is a second result of the epilogue, so that the sum is not read again.
The loop has no masks where a tile is one position of whole blocks.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from onp_kernels.common import activate, between, launch
from onp_kernels.tiles import Tile, choose_tile


class Norm(NamedTuple):
    """What follows a conv as its second result: `activation(y * scale + shift)`, scale and shift float32 `[B|1, K]`.

    `only`: y itself is not wanted.
    """

    scale: Tensor
    shift: Tensor
    activation: str = "none"
    low: float = 0.0
    high: float = float("inf")
    only: bool = False


NOT_SPECIALIZED = ["N", "rows", "H", "W", "OH", "OW", "R", "S", "stride_h", "stride_w", "padding_h", "padding_w", "inputs_b"]


@triton.jit
def _bits(first, size, dilation, count):
    """Bit i, of `count`, where 0 <= first + i * dilation < size."""
    below = tl.minimum(tl.cdiv(tl.maximum(-first, 0), dilation), count)
    above = tl.minimum(tl.cdiv(tl.maximum(size - first, 0), dilation), count)
    return (1 << above) - (1 << tl.minimum(below, above))


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def masked_conv_kernel(
    x,  # [B or 1, N, H, W, C]
    weight,  # [B or 1, K, R, S, C]
    bias,  # [B or 1, K]
    keep,  # [B, K] or None
    residual,  # [B or 1, N, OH, OW, K] or None
    inputs,  # [B] or None
    outputs,  # [B] or None
    scale,  # [B or 1, K] or None
    shift,
    y,  # [B, N, OH, OW, K] or None
    z,  # the same, or None without scale
    N,
    rows,  # numbers that one position takes: N, or more where tiles would straddle two positions
    C,
    K,
    H,
    W,
    OH,
    OW,
    R,
    S,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    x_b,  # elements from one mask to the next, 0 where all share one
    x_n,
    x_h,
    x_w,
    weight_b,
    bias_b,
    keep_b,
    residual_b,
    inputs_b,
    scale_b,
    shift_b,
    low,
    high,
    z_low,
    z_high,
    ACTIVATION: tl.constexpr,
    Z_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    LOCAL: tl.constexpr,
    ONE_POSITION: tl.constexpr,  # a tile is one position: BM divides rows
    FEW_TAPS: tl.constexpr,  # R and S are at most 30
    EVEN: tl.constexpr,  # BN divides K and BC divides C
):
    i_b = tl.program_id(1)
    tiles_n = tl.cdiv(K, BN)
    i_m = tl.program_id(0) // tiles_n
    i_n = tl.program_id(0) % tiles_n
    n_in = C
    if inputs is not None:
        n_in = tl.load(inputs + i_b * inputs_b)
    n_out = K
    if outputs is not None:
        n_out = tl.load(outputs + i_b)
    if i_n * BN < n_out:
        x += i_b.to(tl.int64) * x_b
        weight += i_b.to(tl.int64) * weight_b

        o_m = i_m * BM + tl.arange(0, BM)
        o_n = i_n * BN + tl.arange(0, BN)
        o_c = tl.arange(0, BC)
        if ONE_POSITION:
            image = i_m * BM % rows + tl.arange(0, BM)
            position = i_m * BM // rows
        elif LOCAL:
            image = o_m // (OH * OW)
            position = o_m % (OH * OW)
        else:
            image = o_m % rows
            position = o_m // rows
        m_m = (image < N) & (position < OH * OW)
        m_n = o_n < n_out
        o_h = position // OW * stride_h - padding_h
        o_w = position % OW * stride_w - padding_w
        # May point outside, into the padding, where the mask of the load keeps such rows out.
        p_x = x + tl.minimum(image, N - 1) * x_n + o_h * x_h + o_w * x_w
        p_w = weight + o_n * R * S * C

        # The taps that lie inside the input for any position of the tile.
        first, last = 0, OH * OW - 1
        if not LOCAL:
            first = i_m * BM // rows
            last = tl.minimum((i_m * BM + BM - 1) // rows, OH * OW - 1)
        top = first // OW * stride_h - padding_h
        bottom = last // OW * stride_h - padding_h
        one_row = first // OW == last // OW
        left = tl.where(one_row, first % OW, 0) * stride_w - padding_w
        right = tl.where(one_row, last % OW, OW - 1) * stride_w - padding_w
        r_first = tl.cdiv(tl.maximum(-bottom, 0), dilation_h)
        s_first = tl.cdiv(tl.maximum(-right, 0), dilation_w)
        n_r = tl.maximum(tl.minimum(R, tl.cdiv(tl.maximum(H - top, 0), dilation_h)) - r_first, 0)
        n_s = tl.maximum(tl.minimum(S, tl.cdiv(tl.maximum(W - left, 0), dilation_w)) - s_first, 0)

        # Where a tile is one position the loop takes just the taps that lie inside. Elsewhere every output has a bit for each
        # row and column of the filter that lies inside: every step pays for what it does for an output. A loop over the taps
        # would leave the bits in a layout that every step converts.
        if FEW_TAPS and not ONE_POSITION:
            r_bits = _bits(o_h, H, dilation_h, R)
            s_bits = tl.where(m_m, _bits(o_w, W, dilation_w, S), 0)

        acc = tl.zeros((BM, BN), tl.float32)
        r_end, s_end = r_first + n_r, s_first + n_s
        r, s, c_first = r_first, s_first, n_in * 0
        for _ in range(0, n_r * n_s * tl.cdiv(n_in, BC)):
            c = c_first + o_c
            h = r * dilation_h
            w = s * dilation_w
            if ONE_POSITION:
                m_x = m_m  # not needed: what is no image reads the last one, and is not stored
            elif FEW_TAPS:
                m_x = ((r_bits & (1 << r)) != 0) & ((s_bits & (1 << s)) != 0)
            else:
                m_x = m_m & (o_h + h >= 0) & (o_h + h < H) & (o_w + w >= 0) & (o_w + w < W)
            # A last block of channels may pass n_in: those of x are zero, and so are those of packed weights.
            p_tap = p_x[:, None] + (h * x_h + w * x_w + c)[None, :]
            p_filters = p_w[None, :] + ((r * S + s) * C + c)[:, None]
            if EVEN:
                # Filters from n_out on hold anything; nobody reads what becomes of them.
                b_x = tl.load(p_tap) if ONE_POSITION else tl.load(p_tap, mask=m_x[:, None], other=0.0)
                b_w = tl.load(p_filters)
            else:
                b_x = tl.load(p_tap, mask=m_x[:, None] & (c < C)[None, :], other=0.0)
                b_w = tl.load(p_filters, mask=m_n[None, :] & (c < C)[:, None], other=0.0)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)
            # Counting is cheaper than dividing.
            if LOCAL:
                s += 1
                r = tl.where(s == s_end, r + 1, r)
                s = tl.where(s == s_end, s_first, s)
                c_first = tl.where(r == r_end, c_first + BC, c_first)
                r = tl.where(r == r_end, r_first, r)
            else:
                c_first += BC
                s = tl.where(c_first >= n_in, s + 1, s)
                c_first = tl.where(c_first >= n_in, 0, c_first)
                r = tl.where(s == s_end, r + 1, r)
                s = tl.where(s == s_end, s_first, s)

        acc += tl.load(bias + i_b * bias_b + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        if keep is not None:
            m_keep = tl.load(keep + i_b * keep_b + o_n, mask=m_n, other=0) != 0
            acc = tl.where(m_keep[None, :], acc, 0.0)
        o_y = (image * OH * OW + position)[:, None] * K + o_n[None, :]
        m_y = m_m[:, None] & (o_n < K)[None, :]
        if residual is not None:
            acc += tl.load(residual + i_b.to(tl.int64) * residual_b + o_y, mask=m_y, other=0.0).to(tl.float32)
        acc = activate(acc, low, high, ACTIVATION)
        if outputs is not None:
            acc = tl.where(m_n[None, :], acc, 0.0)
        y_b = i_b.to(tl.int64) * N * OH * OW * K
        if y is not None:
            tl.store(y + y_b + o_y, acc.to(y.dtype.element_ty), mask=m_y)
        if z is not None:
            b_scale = tl.load(scale + i_b * scale_b + o_n, mask=m_n, other=0.0)[None, :]
            b_shift = tl.load(shift + i_b * shift_b + o_n, mask=m_n, other=0.0)[None, :]
            acc = acc.to(z.dtype.element_ty).to(tl.float32)  # what a kernel of its own would read
            acc = tl.where(b_scale == 0, 0.0, acc * b_scale) + b_shift
            acc = activate(acc, z_low, z_high, Z_ACTIVATION)
            tl.store(z + y_b + o_y, acc.to(z.dtype.element_ty), mask=m_y)


def masked_conv(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """`reference_conv.masked_conv`; `options` are its own and those of `masked_conv_norm`."""
    y, _ = masked_conv_norm(x, weight, bias, None, **options)
    assert y is not None
    return y


def masked_conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Norm | None,
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
    precision: str = "tf32x3",
    tile: Tile | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """`reference_conv.masked_conv` on the current stream, and what `norm` makes of it; nothing waits for the device.

    `norm` does not go together with `outputs`. `precision`: how float32 is multiplied: "tf32", "tf32x3" (three products, nearly
    float32) or "ieee" (no matrix unit). `tile`: None asks the table in `onp_kernels.tiles`. Raises ValueError for shapes that
    do not fit each other and for a mask whose values cannot be numbered in 32 bits.
    """
    K, R, S, C = weight.shape[1:]
    N, H, W = x.shape[1:4]
    OH = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    OW = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    per_mask = (x, weight, bias, keep, residual, inputs, outputs, *(norm or ())[:2])
    B = max(len(tensor) for tensor in per_mask if tensor is not None)
    if x.shape[4] != C or any(tensor is not None and len(tensor) not in (1, B) for tensor in per_mask):
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} do not fit each other under {B} masks")
    if norm is not None and outputs is not None:
        raise ValueError("a norm reads every channel in its place: give a norm or outputs, not both")
    if residual is not None and residual.shape[1:] != (N, OH, OW, K):
        raise ValueError(f"the residual is {list(residual.shape)}; the conv gives [{B}, {N}, {OH}, {OW}, {K}]")
    if max(N * x.stride(1), N * OH * OW * K, weight[0].numel()) >= 2**31:
        raise ValueError(f"{N} images of {H} x {W} x {C} are too many for one launch; give fewer at once")
    y = None if norm is not None and norm.only else torch.empty(B, N, OH, OW, K, dtype=x.dtype, device=x.device)
    z = None if norm is None else torch.empty(B, N, OH, OW, K, dtype=x.dtype, device=x.device)
    if not B * N * OH * OW * K:
        return y, z
    x = x if x.stride(4) == 1 else x.contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    keep = None if keep is None else keep.view(torch.uint8) if keep.stride(1) == 1 else keep.contiguous().view(torch.uint8)
    residual = None if residual is None else residual.contiguous()
    scale, shift = (None, None) if norm is None else (norm.scale.contiguous(), norm.shift.contiguous())
    tile = tile or choose_tile(x.device, x.dtype, N * OH * OW, K, C, R * S, B)
    rows = triton.cdiv(N, tile.bm) * tile.bm
    rows = rows if rows <= 1.1 * N and not tile.local else N
    launch(
        *(masked_conv_kernel, (triton.cdiv(rows * OH * OW, tile.bm) * triton.cdiv(K, tile.bn), B)),
        *(x, weight, bias, keep, residual, inputs, outputs, scale, shift, y, z),
        *(N, rows, C, K, H, W, OH, OW, R, S, *stride, *padding, *dilation),
        *(between(x), x.stride(1), x.stride(2), x.stride(3)),
        *map(between, (weight, bias, keep, residual, inputs, scale, shift)),
        *(low, high, *((0.0, 0.0) if norm is None else (norm.low, norm.high))),
        ACTIVATION=activation,
        Z_ACTIVATION="none" if norm is None else norm.activation,
        PRECISION=precision,
        BM=tile.bm,
        BN=tile.bn,
        BC=tile.bc,
        LOCAL=tile.local,
        ONE_POSITION=rows % tile.bm == 0 and not tile.local,
        FEW_TAPS=max(R, S) <= 30,
        EVEN=K % tile.bn == 0 and C % tile.bc == 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers or None,
    )
    return y, z
