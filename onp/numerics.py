"""Where and how numbers are computed: the device, the range of seeds and budgets, and what cuDNN may do on a GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from onp.errors import InputError

SEEDS = 2**31  # seeds are 0 to SEEDS - 1: what torch and numpy both take


def resolve_device(name: str) -> torch.device:
    """The device that an option names.

    Args:
        name: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        InputError: another name, or "cuda" on a machine without a usable GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"There is no device '{name}'; choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("This machine has no usable CUDA device; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


SEED_OFFSETS = {"pass": 100, "audit": 1000, "verify": 2000, "target": 10_000}
"""What is added to the seed of a run for parts of it that draw other random numbers; `target` is numbered."""


def derive_seed(seed: int, purpose: str, number: int = 1) -> int:
    """The seed of a part of a run.

    Args:
        seed: of the run.
        purpose: a key of `SEED_OFFSETS`.
        number: of the part, from 0 on, where there are several for that purpose.
    """
    return seed + SEED_OFFSETS[purpose] * number


def check_seed(seed: object, flag: str = "--seed") -> None:
    """Raise InputError, with the name of the option, for a seed that not every random number generator takes."""
    if not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(f"{flag} is a number from 0 to {SEEDS - 1}, not {seed}.")


def check_max_acc_drop(share: object) -> None:
    """Raise InputError unless `share` is one of the images, in [0, 1)."""
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise InputError(f"--max-acc-drop is a share of the images, 0.01 for one point, not {share}.")


@contextmanager
def strict_float32() -> Iterator[None]:
    """Compute convolutions in full float32 with `repeatable` algorithms; TF32, cuDNN's default, keeps 10 of 23 mantissa bits.

    On a CPU, numbers below 1.2e-38 (subnormal ones) count as zero: gradients of a confident network fall there, and a product
    of such numbers takes up to sixty times as long. Threads that start inside take that over.
    """
    subnormal = float(torch.tensor(1e-40) * 1.0) > 0
    torch.set_flush_denormal(True)
    try:
        with _flags(allow_tf32=False):
            yield
    finally:
        torch.set_flush_denormal(not subnormal)


@contextmanager
def repeatable() -> Iterator[None]:
    """Use only convolution algorithms that give the same numbers every time; TF32 stays on, as in usual training code.

    Nothing changes on a CPU.
    """
    with _flags(allow_tf32=True):
        yield


def _flags(allow_tf32: bool) -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32)
