"""The software and the machine that a result was measured with."""

from __future__ import annotations

import platform

import numpy
import torch

from onp.version import VERSION


def versions() -> dict[str, str]:
    """Versions of what a result depends on, by name."""
    return {"onp": VERSION, "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def hardware() -> dict[str, str | int | None]:
    """Instruction set, vector instructions and threads that torch uses, name of the first GPU (None without one)."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "cpu": capability, "threads": torch.get_num_threads(), "gpu": gpu}
