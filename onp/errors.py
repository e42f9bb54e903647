"""The one exception that a user's mistake raises, and what other exceptions say about the machine or the user's files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what is wrong and what to do; the command line prints it and exits with 2. It may hold
    names from files, so it is made `printable`.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message, longest=None))


class UnsafeCheckpointError(InputError):
    """A checkpoint was refused because it holds what can run code when it is opened: pickled objects or a program."""


@dataclass(frozen=True)
class DeviceError:
    """What an exception says about the machine."""

    sentence: str  #: the beginning of a sentence
    on_gpu: bool  #: whether the CPU may do what failed


def device_error(error: RuntimeError | MemoryError) -> DeviceError | None:
    """Tell an error of the machine from one of the program.

    Args:
        error: a RuntimeError of torch, or a MemoryError of Python, numpy or Pillow.

    Returns:
        None for an error of the program.
    """
    import torch  # here, since messages need none of it

    if isinstance(error, torch.OutOfMemoryError):
        return DeviceError("The GPU has too little memory", on_gpu=True)
    # Of the driver: the device is lost, or a kernel failed, after which nothing works on it in this process.
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        return DeviceError("The GPU does not answer any more", on_gpu=True)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return DeviceError("The machine has too little memory", on_gpu=False)
    return None


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line of its text, for a message of one sentence."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")


def printable(text: object, longest: int | None = 200) -> str:
    """Text as it may stand in a message: on one line, without control characters and marks of direction.

    Args:
        text: often a name from a file.
        longest: characters that are kept; None for all.
    """
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)[:longest])
    return line + ("..." if longest is not None and len(str(text)) > longest else "")


def first_few(names: Iterable[object], count: int = 3) -> str:
    """The first few names, as they may stand in a message, and how many more there are."""
    names = list(names)
    return ", ".join(map(printable, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")
