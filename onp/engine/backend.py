"""What this machine can compute with, and the backend of an evaluator that follows from it."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from onp.errors import InputError

_log = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")
AMD = "AuthenticAMD"  # has twice the rate in bf16 dot products; on an Intel CPU without AMX they have half of it

Backend = Literal["auto", "torch", "onednn", "triton"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Machine:
    """What the processor and the installed libraries can do."""

    onednn_problem: str | None  #: why the oneDNN steps cannot run, None where they can
    bfloat16: bool  #: whether oneDNN computes in bfloat16, fast or not; it needs AVX-512
    matrix_units: bool  #: whether bfloat16 is faster than float32: AMX, or AMD's bf16 dot products
    triton: bool  #: whether triton is installed
    interpreter: bool  #: whether triton's kernels run in NumPy on the CPU: slow, for tests

    @staticmethod
    def here() -> Machine:
        """This machine."""
        problem = None
        if not torch.backends.mkldnn.is_available():
            problem = "this torch was built without oneDNN"
        elif not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            problem = f"torch {torch.__version__} has no fused oneDNN convolution"
        return Machine(
            onednn_problem=problem,
            bfloat16=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
            matrix_units=torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _vendor() == AMD),
            triton=importlib.util.find_spec("triton") is not None,
            interpreter=os.environ.get("TRITON_INTERPRET") == "1",
        )

    def triton_problem(self, device: torch.device) -> str | None:
        """Why the Triton kernels cannot run on `device`, None where they can."""
        if not self.triton:
            return "triton is not installed: `pip install triton`, on Linux"
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            return None if major >= 8 else f"the GPU has compute capability {major}.{minor}; the kernels need 8.0"
        if device.type == "cpu" and self.interpreter:
            return None
        return f"the victim is on {device.type}, and the kernels are for NVIDIA GPUs"


def _vendor() -> str:
    """Of the CPU, as Linux names it; "" elsewhere."""
    try:
        fields = (line.partition(":") for line in CPUINFO.read_text().splitlines())
    except OSError:
        return ""
    return next((value.strip() for name, _, value in fields if name.strip() == "vendor_id"), "")


def choose_backend(requested: Backend, device: torch.device, machine: Machine) -> Backend:
    """The backend of an evaluator.

    Args:
        requested: "torch", "onednn", "triton", or "auto" for the fastest that can run.
        device: of the victim.
        machine: what there is.

    Returns:
        "triton", "onednn" or "torch".

    Raises:
        InputError: the backend is not known, or cannot run on `device`.
    """
    if requested not in ("auto", "torch", "onednn", "triton"):
        raise InputError(f"the backend {requested!r} is not known: choose auto, torch, onednn or triton")
    if requested == "torch":
        return requested
    fast: Backend = requested if requested != "auto" else "triton" if device.type == "cuda" else "onednn"
    if fast == "triton":
        problem = machine.triton_problem(device)
    else:
        problem = f"the victim is on {device.type}" if device.type != "cpu" else machine.onednn_problem
    if problem is None:
        return fast
    if requested != "auto":
        raise InputError(f"the backend {requested} was asked for and cannot run: {problem}")
    _log.info("evaluator: no %s kernels, because %s", fast, problem)
    return "torch"


def bfloat16_agrees(agreement: float, least: float) -> bool:
    """Whether bfloat16 may be used: it gives at least the share `least` of the labels that float32 gives.

    Args:
        agreement: share of images with the same label in both, nothing pruned.
        least: `Tuning.agreement`.
    """
    if agreement < least:
        _log.info(
            "Masks are scored in float32: in bfloat16, which is faster, the network gives %.1f %% of the images another class.",
            100 * (1 - agreement),
        )
    return agreement >= least
