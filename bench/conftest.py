"""What a number is worth without: the hardware and the versions it was measured with."""

import os
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


@pytest.fixture(autouse=True)
def _surroundings(benchmark) -> None:
    """Hardware and versions in `extra_info` of every benchmark."""
    benchmark.extra_info |= {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("onp-defense", "torch", "torch-sparse", "torch-scatter", "triton")},
    }
