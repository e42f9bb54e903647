"""Implicit-GEMM convolution of B masks in one launch; the contract is `onp_kernels.reference.masked_conv`.

How pruned channels are skipped. A matrix unit multiplies whole tiles, and loads reach it at full width only if 16 bytes lie
together, so picking kept channels one by one inside the loop would cost more than it saves. Here the *filters* are picked: for
every mask `onp_kernels.channels.pack_filters` moves the kept rows and columns of the weights together, once (about a hundredth
of the conv's time), the conv computes the first `outputs[b]` channels and stores them together, and the next conv reduces over
the first `inputs[b]` only. Both sides of the product shrink, in steps of a tile, and every load stays contiguous. What is added
to a residual sum keeps its place, since the sum's channels are not zero; there the mask is a factor in the epilogue.

One program computes a tile of positions x filters of one mask; the programs of one row of tiles follow each other, so that the
activations they share are read from the L2 cache. Compiled for sm_80, sm_90 and sm_100 and run by the interpreter in the tests;
no timing on a GPU has been taken.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from onp_kernels.common import activate, between
from onp_kernels.tiles import Tile, choose_tile


@triton.jit(do_not_specialize=["M", "H", "W", "OH", "OW", "taps", "S", "stride_h", "stride_w", "padding_h", "padding_w"])
def masked_conv_kernel(
    x,  # [B or 1, N, H, W, C]
    weight,  # [B or 1, K, R, S, C]
    bias,  # [B or 1, K]
    keep,  # [B, K] or None
    residual,  # [B or 1, N, OH, OW, K] or None
    inputs,  # [B] or None
    outputs,  # [B] or None
    y,  # [B, N, OH, OW, K]
    M,
    C,
    K,
    H,
    W,
    OH,
    OW,
    taps,
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
    low,
    high,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
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
        y += i_b.to(tl.int64) * M * K

        o_m = i_m * BM + tl.arange(0, BM)
        o_n = i_n * BN + tl.arange(0, BN)
        o_c = tl.arange(0, BC)
        m_m = o_m < M
        m_n = o_n < K
        image = o_m // (OH * OW)
        o_h = (o_m // OW) % OH * stride_h - padding_h
        o_w = o_m % OW * stride_w - padding_w
        p_x = x + image * x_n + o_h * x_h + o_w * x_w  # may point outside; the mask of the load keeps such rows out
        p_w = weight + o_n * taps * C

        acc = tl.zeros((BM, BN), tl.float32)
        blocks = tl.cdiv(n_in, BC)
        for i in range(0, taps * blocks):
            tap = i // blocks
            c = (i - tap * blocks) * BC + o_c
            h = tap // S * dilation_h
            w = tap % S * dilation_w
            m_x = m_m & (o_h + h >= 0) & (o_h + h < H) & (o_w + w >= 0) & (o_w + w < W)
            # A last block of channels may pass n_in: those of x are zero, and so are those of packed weights.
            b_x = tl.load(p_x[:, None] + (h * x_h + w * x_w + c)[None, :], mask=m_x[:, None] & (c < C)[None, :], other=0.0)
            b_w = tl.load(p_w[None, :] + (tap * C + c)[:, None], mask=m_n[None, :] & (c < C)[:, None], other=0.0)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

        acc += tl.load(bias + i_b * bias_b + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        if keep is not None:
            m_keep = tl.load(keep + i_b * keep_b + o_n, mask=m_n, other=0) != 0
            acc = tl.where(m_keep[None, :], acc, 0.0)
        o_y = o_m[:, None] * K + o_n[None, :]
        m_y = m_m[:, None] & m_n[None, :]
        if residual is not None:
            acc += tl.load(residual + i_b.to(tl.int64) * residual_b + o_y, mask=m_y, other=0.0).to(tl.float32)
        acc = activate(acc, low, high, ACTIVATION)
        if outputs is not None:
            acc = tl.where((o_n < n_out)[None, :], acc, 0.0)
        tl.store(y + o_y, acc.to(y.dtype.element_ty), mask=m_y)


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
    precision: str = "tf32x3",
    tile: Tile | None = None,
) -> Tensor:
    """`onp_kernels.reference.masked_conv` on the current stream; nothing waits for the device.

    `precision`: how float32 is multiplied: "tf32", "tf32x3" (three products, nearly float32) or "ieee" (no matrix unit).
    `tile`: None asks the table in `onp_kernels.tiles`. Raises ValueError for shapes that do not fit each other and for a mask
    whose values cannot be numbered in 32 bits.
    """
    K, R, S, C = weight.shape[1:]
    N, H, W = x.shape[1:4]
    OH = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    OW = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    per_mask = (x, weight, bias, keep, residual, inputs, outputs)
    B = max(len(tensor) for tensor in per_mask if tensor is not None)
    if x.shape[4] != C or any(tensor is not None and len(tensor) not in (1, B) for tensor in per_mask):
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} do not fit each other under {B} masks")
    if residual is not None and residual.shape[1:] != (N, OH, OW, K):
        raise ValueError(f"the residual is {list(residual.shape)}; the conv gives [{B}, {N}, {OH}, {OW}, {K}]")
    if max(N * x.stride(1), N * OH * OW * K, weight[0].numel()) >= 2**31:
        raise ValueError(f"{N} images of {H} x {W} x {C} are too many for one launch; give fewer at once")
    y = torch.empty(B, N, OH, OW, K, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = x if x.stride(4) == 1 else x.contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    keep = None if keep is None else keep.view(torch.uint8) if keep.stride(1) == 1 else keep.contiguous().view(torch.uint8)
    residual = None if residual is None else residual.contiguous()
    tile = tile or choose_tile(x.device, x.dtype, N * OH * OW, K, C, B)
    grid = (triton.cdiv(N * OH * OW, tile.bm) * triton.cdiv(K, tile.bn), B)
    masked_conv_kernel[grid](
        *(x, weight, bias, keep, residual, inputs, outputs, y),
        *(N * OH * OW, C, K, H, W, OH, OW, R * S, S, *stride, *padding, *dilation),
        *(between(x), x.stride(1), x.stride(2), x.stride(3)),
        *(between(weight), between(bias), between(keep), between(residual), between(inputs), low, high),
        ACTIVATION=activation,
        PRECISION=precision,
        BM=tile.bm,
        BN=tile.bn,
        BC=tile.bc,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y
