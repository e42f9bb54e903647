"""What a RuntimeError of torch says about the machine rather than about the program."""

from __future__ import annotations

import torch

NO_MEMORY = "The machine has too little memory"


def trouble(error: RuntimeError) -> str | None:
    """The trouble as the beginning of a sentence; None for an error of the program."""
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU has too little memory"
    # Of the driver: the device is lost, or some kernel failed, after which nothing works on it in this process.
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        return "The GPU does not answer any more"
    if "can't allocate memory" in str(error):
        return NO_MEMORY
    return None
