"""Code of one's own that an option names: `package.module:callable`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onp.errors import InputError, first_line


def load_callable(spec: str, what: str, choices: str) -> Callable[..., Any]:
    """The function or class that `spec` names, imported from the current folder too.

    A file, `own/mynet.py:Net` or `own/mynet:Net`, stands for its module, `own.mynet:Net`.

    Raises InputError, of which `what` ("architecture") and `choices` ("a built-in name or package.module:callable") are
    words, where it cannot be imported or called.
    """
    given, _, name = spec.partition(":")
    module_name, folder = _module(given)
    # An installed command does not have the current folder on its path, `python -m` does.
    sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        where = f"there is no {module_name.replace('.', '/')}.py in the folder where you run, {folder}" if missing else ""
        raise InputError(f"The {what} '{spec}' cannot be imported ({where or first_line(error)}); write {choices}.") from error
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise InputError(f"'{spec}' is of type {type(found).__name__}, not a function or class.")
    return found


def _module(given: str) -> tuple[str, str]:
    """The name of the module that a name or file stands for, and the folder to import it from."""
    if "/" not in given and not given.endswith(".py"):
        return given, os.getcwd()
    path = Path(given.removesuffix(".py"))
    if path.is_absolute() or ".." in path.parts:
        return path.name, str(path.parent.resolve())
    return ".".join(path.parts), os.getcwd()
