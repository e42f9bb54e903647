"""What several kernels share: the activations of their epilogues, and values that all masks may share."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def activate(y, low, high, ACTIVATION: tl.constexpr):
    """`y` float32 through "none", "clamp" (between `low` and `high`: relu, relu6, hardtanh), "silu" or "hardswish"."""
    if ACTIVATION == "clamp":
        y = tl.minimum(tl.maximum(y, low), high)
    elif ACTIVATION == "silu":
        y = y / (1 + tl.exp(-y))
    elif ACTIVATION == "hardswish":
        y = y * tl.minimum(tl.maximum(y + 3, 0.0), 6.0) / 6
    else:
        tl.static_assert(ACTIVATION == "none", "an activation that no kernel knows")
    return y


def between(tensor: Tensor | None) -> int:
    """Elements from one mask's part of `tensor` `[B, ...]` to the next; 0 where all masks share one."""
    return 0 if tensor is None or len(tensor) == 1 else tensor.stride(0)
