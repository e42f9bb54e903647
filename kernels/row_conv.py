"""A 3 x 3 convolution of stride 1 over whole rows of its images; `onp_kernels.masked_conv` launches it where a tile says so.

The nine taps of a 3 x 3 filter read nearly the same values, and with few channels these loads are what a conv waits for (8 TB/s
from the L2 cache of an H200 with 64 channels). A tile here is whole rows of one image, and what one load brings is multiplied
by the three taps of a filter's row at once, into three sums. Those of the left and the right tap belong one position further
on; they are moved there once, at the end, instead of loading moved values for every block of channels. A row has no neighbours
beyond its ends, so nothing is computed twice.
"""

import triton
import triton.language as tl

from onp_kernels.epilogue import finish


@triton.jit(do_not_specialize=["N", "H", "inputs_b"])
def row_conv_kernel(
    x,  # [B or 1, N, H, W, C]
    weight,  # [B or 1, K, 3, 3, C]
    bias,  # [B or 1, K]
    keep,  # [B, K] or None
    residual,  # [B or 1, N, H, W, K] or None
    inputs,  # [B] or None
    outputs,  # [B] or None
    scale,  # [B or 1, K] or None
    shift,
    y,  # [B, N, H, W, K] or None
    z,  # the same, or None without scale
    N,
    C,
    K,
    H,
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
    W: tl.constexpr,  # divides BM, which divides H * W
    ACTIVATION: tl.constexpr,
    Z_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,  # divides K
    BC: tl.constexpr,  # divides C
):
    i_b = tl.program_id(1)
    tiles_n = K // BN
    i_m = tl.program_id(0) // tiles_n
    i_n = tl.program_id(0) % tiles_n
    n_in = C
    if inputs is not None:
        n_in = tl.load(inputs + i_b * inputs_b)
    n_out = K
    if outputs is not None:
        n_out = tl.load(outputs + i_b)
    if i_n * BN < n_out:
        tiles = H * W // BM
        o = tl.arange(0, BM)
        o_w = o % W
        o_h = i_m % tiles * (BM // W) + o // W
        o_n = i_n * BN + tl.arange(0, BN)
        o_c = tl.arange(0, BC)
        p_x = x + i_b.to(tl.int64) * x_b + i_m // tiles * x_n + (o_h - 1) * x_h + o_w * x_w
        p_w = weight + i_b.to(tl.int64) * weight_b + o_n * 9 * C
        left = tl.zeros((BM, BN), tl.float32)
        middle = tl.zeros((BM, BN), tl.float32)
        right = tl.zeros((BM, BN), tl.float32)
        r, c_first = 0, n_in * 0
        for _ in range(0, 3 * tl.cdiv(n_in, BC)):
            # A last block of channels may pass n_in: those of x are zero, and so are those of packed weights.
            c = c_first + o_c
            m_x = (o_h + r >= 1) & (o_h + r <= H)
            b_x = tl.load(p_x[:, None] + (r * x_h + c)[None, :], mask=m_x[:, None], other=0.0)
            p_taps = p_w[None, :] + (r * 3 * C + c)[:, None]
            left = tl.dot(b_x, tl.load(p_taps), left, input_precision=PRECISION)
            middle = tl.dot(b_x, tl.load(p_taps + C), middle, input_precision=PRECISION)
            right = tl.dot(b_x, tl.load(p_taps + 2 * C), right, input_precision=PRECISION)
            r += 1
            c_first = tl.where(r == 3, c_first + BC, c_first)
            r = tl.where(r == 3, 0, r)

        before = tl.broadcast_to(tl.maximum(o - 1, 0)[:, None], (BM, BN))
        behind = tl.broadcast_to(tl.minimum(o + 1, BM - 1)[:, None], (BM, BN))
        acc = middle + tl.where((o_w > 0)[:, None], tl.gather(left, before, 0), 0.0)
        acc += tl.where((o_w < W - 1)[:, None], tl.gather(right, behind, 0), 0.0)
        o_y = i_m * BM + o
        m_y = (o_y < N * H * W)[:, None] & (o_n < K)[None, :]
        finish(
            acc,
            bias + i_b * bias_b,
            keep,
            residual,
            outputs,
            scale,
            shift,
            y,
            z,
            i_b,
            o_y,
            o_n,
            m_y,
            n_out,
            N * H * W,
            K,
            keep_b,
            residual_b,
            scale_b,
            shift_b,
            low,
            high,
            z_low,
            z_high,
            ACTIVATION,
            Z_ACTIVATION,
        )
