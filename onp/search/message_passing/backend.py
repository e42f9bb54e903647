"""Which implementation runs an op: the first of `BACKENDS` that can, or the one asked for."""

import functools
import logging
import os
from typing import Literal

import torch

from onp.engine.native import module
from onp.errors import InputError

Backend = Literal["native", "torch-sparse", "torch-scatter", "torch"]
BACKENDS: tuple[Backend, ...] = ("native", "torch-sparse", "torch-scatter", "torch")

_log = logging.getLogger(__name__)


@functools.cache
def choose(requested: str | None, device_type: str) -> Backend:
    """The backend for tensors on `device_type` ("cpu", "cuda").

    `requested` is one of BACKENDS or "auto"; None asks the environment variable ONP_BACKEND, which is read once and counts
    as "auto" where unset. "auto" takes the first of BACKENDS that serves the device. The choice is logged once.

    Raises InputError for another name, or when a backend was asked for by name and cannot be had (with the reason).
    """
    requested = requested or os.environ.get("ONP_BACKEND") or "auto"
    if requested != "auto" and requested not in BACKENDS:
        raise InputError(f"The backend {requested!r} is not known: choose {', '.join(BACKENDS)} or auto.")
    refused: list[str] = []
    for backend in BACKENDS:
        if requested not in ("auto", backend):
            continue
        problem = _problem(backend, device_type)
        if not problem:
            why = "asked for" if requested == backend else "; ".join(refused)
            _log.info("ops on %s run in %s%s", device_type, backend, f": {why}" if why else "")
            return backend
        refused.append(problem)
    raise InputError(f"The {requested} backend was asked for, but {refused[0]}.")


def _problem(backend: str, device_type: str) -> str:
    """Why `backend` cannot serve `device_type`; empty if it can."""
    if backend == "torch":
        return ""
    found, problem = module(backend)
    if found is None:
        return problem
    if backend == "native" and device_type == "cuda" and not found.with_cuda:
        return "onp_native was built without CUDA; build it where nvcc is on PATH"
    if backend != "native" and device_type == "cuda" and getattr(torch.ops, found.__name__).cuda_version() < 0:
        return f"{found.__name__} was built without CUDA"
    if device_type not in ("cpu", "cuda"):
        return f"{found.__name__} has no code for {device_type} tensors"
    return ""
