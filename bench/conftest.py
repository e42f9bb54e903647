"""What a number is worth without: the hardware and the versions it was measured with."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the benchmarks share bench/cases.py and bench/evaluator_baselines.py
from cases import cpu_name


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Nothing runs beside what is timed."""
    return 0


@pytest.fixture(autouse=True)
def _surroundings(benchmark) -> None:
    """Hardware and versions in `extra_info` of every benchmark."""
    benchmark.extra_info |= {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("onp-defense", "torch", "torch-sparse", "torch-scatter", "triton")},
    }
