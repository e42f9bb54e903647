"""Code of one's own that an option names: `package.module:callable`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from onp.errors import InputError, first_line


def load_callable(spec: str, what: str, choices: str) -> Callable[..., Any]:
    """The function or class that `spec` names, imported from the current folder too.

    Raises InputError, of which `what` ("architecture") and `choices` ("a built-in name or package.module:callable") are
    words, where it cannot be imported or called.
    """
    module_name, _, name = spec.partition(":")
    # An installed command does not have the current folder on its path, `python -m` does.
    sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        if module_name.endswith(".py"):
            dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
            raise InputError(f"'{spec}' names a file; write {dotted}:{name}, in the folder it lies in.") from error
        raise InputError(f"The {what} '{spec}' cannot be imported ({first_line(error)}); write {choices}.") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"'{spec}' is of type {type(found).__name__}, not a function or class.")
    return found
