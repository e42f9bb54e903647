"""What cuDNN may do to numbers on a GPU; nothing here changes anything on a CPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def strict_float32() -> Iterator[None]:
    """Float32 that is float32: no TF32 in convolutions, which keeps ten of the 23 bits and is the default; and `repeatable`."""
    with _flags(allow_tf32=False):
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Only convolutions that give the same numbers every time; TF32, as training code has it by default."""
    with _flags(allow_tf32=True):
        yield


def _flags(allow_tf32: bool) -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32)
