"""Which implementation runs an op: what is available, what was chosen, why not."""

import functools
import importlib
import logging
import os
import warnings
from types import ModuleType
from typing import Literal

import torch

from onp.errors import InputError

Backend = Literal["native", "torch-sparse", "torch-scatter", "torch"]
BACKENDS: tuple[Backend, ...] = ("native", "torch-sparse", "torch-scatter", "torch")

_log = logging.getLogger(__name__)


@functools.cache
def module(backend: str) -> tuple[ModuleType | None, str]:
    """The module behind "native", "torch-sparse" or "torch-scatter", or None and the reason it cannot be used."""
    name = "onp_native" if backend == "native" else backend.replace("-", "_")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-sparse uses parts of torch that are going to go
            return importlib.import_module(name), ""
    except (ImportError, OSError, RuntimeError) as error:
        # Not only ImportError: a binary made for another torch fails when it is loaded.
        how = "`pip install .` builds it" if backend == "native" else "see the extra `scatter` in pyproject.toml"
        return None, f"{name} cannot be imported ({error}): {how}"


def native() -> ModuleType:
    """The compiled module, where `choose` has chosen it."""
    found, problem = module("native")
    if found is None:
        raise InputError(f"The native backend was asked for, but {problem}.")
    return found


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
