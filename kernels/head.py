"""The end of a network: means over positions, and logits that become counts; the contracts are in `reference_conv`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from onp_kernels.common import between, launch
from onp_kernels.reference_conv import MOST_DIVERGENCE, PROBABILITY


@triton.jit(do_not_specialize=["N", "H", "W", "OH", "OW", "taps", "S", "padding_h", "padding_w"])
def tap_means_kernel(
    x,  # [B, N, H, W, C]
    y,  # [B, N, taps, C]
    N,
    H,
    W,
    C,
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
    x_b,
    x_n,
    x_h,
    x_w,
    BI: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_b = tl.program_id(2).to(tl.int64)
    o_t = tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = tl.program_id(0) * BI
    for image in range(first, tl.minimum(first + BI, N)):
        for t in range(0, taps, BT):
            r, s = (t + o_t) // S, (t + o_t) % S
            total = tl.zeros((BT, BC), tl.float32)
            for start in range(0, H * W, BP):
                # Every position is read once: a product with ones where a tap sees it, for some output, sums it for all taps.
                o_p = start + tl.arange(0, BP)
                h, w = o_p // W, o_p % W
                up = h[None, :] + padding_h - (r * dilation_h)[:, None]
                left = w[None, :] + padding_w - (s * dilation_w)[:, None]
                sees = (up >= 0) & (up % stride_h == 0) & (up // stride_h < OH) & (t + o_t < taps)[:, None]
                sees = sees & (left >= 0) & (left % stride_w == 0) & (left // stride_w < OW)
                p_x = x + i_b * x_b + image * x_n + (h * x_h + w * x_w)[:, None] + o_c[None, :]
                b_x = tl.load(p_x, mask=(o_p < H * W)[:, None] & (o_c < C)[None, :], other=0.0)
                total = tl.dot(sees.to(b_x.dtype), b_x, total, input_precision="ieee")
            o_y = ((i_b * N + image) * taps + t + o_t)[:, None] * C + o_c[None, :]
            total /= OH * OW
            tl.store(y + o_y, total.to(y.dtype.element_ty), mask=(t + o_t < taps)[:, None] & (o_c < C)[None, :])


def tap_means(
    x: Tensor,
    size: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """`reference_conv.tap_means`."""
    B, N, H, W, C = x.shape
    R, S = size
    OH = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    OW = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    y = torch.empty(B, N, R, S, C, dtype=x.dtype, device=x.device)
    if y.numel():
        x = x if x.stride(4) == 1 else x.contiguous()
        # A matrix unit takes 16 of anything at least.
        blocks = {
            "BT": 16,
            "BP": min(64, max(16, triton.next_power_of_2(H * W))),
            "BC": min(128, max(16, triton.next_power_of_2(C))),
        }
        images = 4 if x.device.type == "cuda" else 1024
        launch(
            *(tap_means_kernel, (triton.cdiv(N, images), triton.cdiv(C, blocks["BC"]), B)),
            *(x, y, N, H, W, C, OH, OW, R * S, S, *stride, *padding, *dilation, *x.stride()[:4]),
            BI=images,
            **blocks,
            num_warps=4,
        )
    return y


@triton.jit(do_not_specialize=["N", "M"])
def head_kernel(
    x,  # [B or 1, N, P, C]
    weight,  # [classes, C] or None
    bias,  # [classes] or None
    expected,  # [N]
    column,  # [N]
    base,  # [M, classes]
    sums,  # [B, 3, columns]
    N,
    M,
    P,
    C,
    classes,
    columns,
    x_b,
    SCALE: tl.constexpr,
    MOST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    i_b = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    m_m = o_m < N
    x += i_b * x_b
    b_expected = tl.load(expected + o_m, mask=m_m, other=-1)
    # One pass over the classes: the largest logit so far, the first class that has it, and exp sums relative to it.
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    wanted = tl.zeros((BM,), tl.float32)
    gap = tl.zeros((BM,), tl.float32)
    best = tl.zeros((BM,), tl.int32)
    for n in range(0, classes, BN):
        o_n = n + tl.arange(0, BN)
        m_n = o_n < classes
        if weight is None:
            o_x = o_m.to(tl.int64)[:, None] * C + o_n[None, :]
            logits = tl.load(x + o_x, mask=m_m[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        else:
            logits = tl.zeros((BM, BN), tl.float32)
            for c in range(0, C, BC):
                o_c = c + tl.arange(0, BC)
                m_x = m_m[:, None] & (o_c < C)[None, :]
                mean = tl.zeros((BM, BC), tl.float32)
                for p in range(0, P):
                    o_x = (o_m.to(tl.int64) * P + p)[:, None] * C + o_c[None, :]
                    mean += tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
                b_w = tl.load(weight + o_n[None, :] * C + o_c[:, None], mask=m_n[None, :] & (o_c < C)[:, None], other=0.0)
                logits = tl.dot(mean / P, b_w.to(tl.float32), logits, input_precision="ieee")
            logits += tl.load(bias + o_n, mask=m_n, other=0.0)[None, :]
        o_base = o_m.to(tl.int64)[:, None] * classes + o_n[None, :]
        m_base = (o_m < M)[:, None] & m_n[None, :]
        b_base = tl.load(base + o_base, mask=m_base, other=0.0)
        gap += tl.sum(tl.where(m_base, tl.exp(b_base) * (b_base - logits), 0.0), 1)
        logits = tl.where(m_n[None, :], logits, float("-inf"))
        wanted += tl.sum(tl.where(o_n[None, :] == b_expected[:, None], logits, 0.0), 1)
        block_largest = tl.max(logits, 1)
        best = tl.where(block_largest > largest, n + tl.argmax(logits, 1).to(tl.int32), best)
        new = tl.maximum(largest, block_largest)
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(logits - new[:, None]), 1)
        largest = new
    # Integers, because a sum of floats would depend on the order in which the programs finish.
    probability = tl.exp(wanted - largest) / total
    divergence = tl.minimum(tl.maximum(gap + largest + tl.log(total), 0.0), MOST)
    b_column = tl.load(column + o_m, mask=m_m, other=-1)
    m_counts = b_column >= 0
    p_sums = sums + i_b * 3 * columns + tl.maximum(b_column, 0)
    tl.atomic_add(p_sums, (best == b_expected).to(tl.int64), mask=m_counts, sem="relaxed")
    fixed = (probability.to(tl.float64) * SCALE + 0.5).to(tl.int64)
    tl.atomic_add(p_sums + columns, fixed, mask=m_counts, sem="relaxed")
    fixed = (divergence.to(tl.float64) * SCALE + 0.5).to(tl.int64)
    tl.atomic_add(p_sums + 2 * columns, fixed, mask=m_counts & (o_m < M), sem="relaxed")


def head(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, expected: Tensor, column: Tensor, base: Tensor, sums: Tensor
) -> None:
    """`reference_conv.head` on the current stream; adds to `sums`."""
    B, (N, P, C) = len(sums), x.shape[1:]
    classes = C if weight is None else len(weight)
    if weight is None and P != 1:
        raise ValueError(f"x {list(x.shape)} has {P} positions; logits have one")
    if N:
        tile = {"BM": 16, "BN": min(128, max(16, triton.next_power_of_2(classes))), "BC": 32}
        launch(
            *(head_kernel, (triton.cdiv(N, tile["BM"]), B)),
            *(x.contiguous(), weight, bias, expected, column, base.contiguous(), sums),
            *(N, len(base), P, C, classes, sums.shape[2], between(x)),
            SCALE=PROBABILITY,
            MOST=MOST_DIVERGENCE,
            **tile,
            num_warps=8,
        )
