"""What every conv does with its sums before it stores them."""

import triton
import triton.language as tl

from onp_kernels.common import activate


@triton.jit
def finish(
    acc,  # [BM, BN]
    bias,  # of this mask
    keep,
    residual,
    outputs,
    scale,
    shift,
    y,
    z,
    i_b,
    o_y,  # [BM]: which of the P outputs of a mask
    o_n,  # [BN]
    m_y,  # [BM, BN]
    n_out,
    P,
    K,
    keep_b,
    residual_b,
    scale_b,
    shift_b,
    low,
    high,
    z_low,
    z_high,
    ACTIVATION: tl.constexpr,
    Z_ACTIVATION: tl.constexpr,
):
    """The epilogue: bias, mask, residual and activation, stored, and what a norm makes of it."""
    m_n = o_n < n_out
    acc += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if keep is not None:
        m_keep = tl.load(keep + i_b * keep_b + o_n, mask=m_n, other=0) != 0
        acc = tl.where(m_keep[None, :], acc, 0.0)
    o_y = o_y[:, None] * K + o_n[None, :]
    if residual is not None:
        acc += tl.load(residual + i_b.to(tl.int64) * residual_b + o_y, mask=m_y, other=0.0).to(tl.float32)
    acc = activate(acc, low, high, ACTIVATION)
    if outputs is not None:
        acc = tl.where(m_n[None, :], acc, 0.0)
    y_b = i_b.to(tl.int64) * P * K
    if y is not None:
        tl.store(y + y_b + o_y, acc.to(y.dtype.element_ty), mask=m_y)
    if z is not None:
        b_scale = tl.load(scale + i_b * scale_b + o_n, mask=m_n, other=0.0)[None, :]
        b_shift = tl.load(shift + i_b * shift_b + o_n, mask=m_n, other=0.0)[None, :]
        acc = acc.to(z.dtype.element_ty).to(tl.float32)  # what a kernel of its own would read
        acc = tl.where(b_scale == 0, 0.0, acc * b_scale) + b_shift
        acc = activate(acc, z_low, z_high, Z_ACTIVATION)
        tl.store(z + y_b + o_y, acc.to(z.dtype.element_ty), mask=m_y)
