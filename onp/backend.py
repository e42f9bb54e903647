"""Which implementation runs an op: what is available, what was chosen, why not."""

import functools
import logging
import os
from types import ModuleType
from typing import Literal

from onp.errors import InputError

Backend = Literal["native", "torch"]

_log = logging.getLogger(__name__)


@functools.cache
def native_module() -> tuple[ModuleType | None, str]:
    """The compiled module `onp_native`, or None and the reason it cannot be used."""
    try:
        import onp_native
    except ImportError as error:
        return None, f"onp_native cannot be imported ({error}): `pip install .` builds it"
    return onp_native, ""


def choose(requested: str | None, device_type: str) -> Backend:
    """The backend for tensors on `device_type` ("cpu", "cuda").

    `requested` is "native", "torch" or "auto"; None asks the environment variable ONP_BACKEND, which counts as "auto"
    where unset. "auto" takes the compiled module wherever it serves the device. The choice is logged once.

    Raises InputError for another name, or when "native" was asked for by name and cannot be had (with the reason).
    """
    return _choose(requested or os.environ.get("ONP_BACKEND") or "auto", device_type)


@functools.cache
def _choose(requested: str, device_type: str) -> Backend:
    if requested not in ("native", "torch", "auto"):
        raise InputError(f"The backend {requested!r} is not known: choose native, torch or auto.")
    problem = _native_problem(device_type)
    if requested == "native" and problem:
        raise InputError(f"The native backend was asked for, but {problem}.")
    if requested == "torch" or problem:
        why = "asked for" if requested == "torch" else problem
        _log.info("ops on %s run in plain torch: %s", device_type, why)
        return "torch"
    _log.info("ops on %s run in onp_native", device_type)
    return "native"


def _native_problem(device_type: str) -> str:
    """Why the compiled module cannot serve `device_type`; empty if it can."""
    module, problem = native_module()
    if module is None:
        return problem
    if device_type == "cuda" and not module.with_cuda:
        return "onp_native was built without CUDA; build it where nvcc is on PATH"
    if device_type not in ("cpu", "cuda"):
        return f"onp_native has no code for {device_type} tensors"
    return ""
