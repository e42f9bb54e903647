"""The optional modules with compiled ops, and why one cannot be used."""

import functools
import importlib
import warnings
from types import ModuleType

from onp.errors import InputError


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
    """`onp_native`, the compiled module of this package.

    Raises:
        InputError: it cannot be imported.
    """
    found, problem = module("native")
    if found is None:
        raise InputError(f"The native backend was asked for, but {problem}.")
    return found
