"""What several kernels share: activations of epilogues, values that all masks may share, and launches that only compile."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


_only_compile: ContextVar[bool] = ContextVar("only_compile", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """`kernel[grid](*args, **options)`; inside `compiled_together` the kernel is compiled for these arguments only."""
    if _only_compile.get():
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def compiled_together() -> Iterator[None]:
    """Inside, kernels are compiled on all processors at once and not run, so outputs hold anything; afterwards all are ready.

    A network needs dozens of variants at seconds each, which otherwise follow each other.
    """
    with ThreadPoolExecutor(os.cpu_count()) as executor, triton.AsyncCompileMode(executor):
        token = _only_compile.set(True)
        try:
            yield
        finally:
            _only_compile.reset(token)
