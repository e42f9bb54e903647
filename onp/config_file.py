"""Options from a TOML file, and such a file of a run, with which the run can be repeated."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import Any

import tomli_w

from onp.errors import InputError, printable
from onp.files import read_regular
from onp.options import value_type
from onp.version import VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 2**20
NOT_REPEATED = ("out", "resume")  # of the one run


def read_config(path: Path, config: type) -> dict[str, Any]:
    """The options that a TOML file gives, by field.

    Args:
        path: of a file of `name = value` lines with names as on the command line, without the leading dashes; dashes and
            underscores are the same.
        config: dataclass of the options.

    Returns:
        Values of the types of the fields.

    Raises:
        InputError: it cannot be read, or holds something that is no option or no value of one.

    Example:
        model = "model.pth"
        max-acc-drop = 0.02
        quiet = true
    """
    try:
        table = tomllib.loads(read_regular(path, MAX_BYTES).decode())
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The file of options {path} is no TOML ({printable(error)}); correct it.") from error
    fields = {field.name: field for field in dataclasses.fields(config)}
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; perhaps {_flag(near[0])} is meant" if near else ""
            raise InputError(f"The file of options {path} holds {printable(key)}, which is no option of this command{hint}.")
        if name in options:
            raise InputError(f"The file of options {path} gives {_flag(name)} twice; leave one out.")
        options[name] = _value(path, fields[name], value)
    return options


def write_config(config: Any, command: str) -> str:
    """The TOML of a run's options, for `read_config`; those that are None, and `--out` and `--resume`, are left out."""
    values = {field.name.replace("_", "-"): getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {name: value for name, value in values.items() if value is not None and name not in NOT_REPEATED}
    head = f"# Options of a run of onp {VERSION}. To repeat it: onp {command} --config THIS_FILE --out NEW_FOLDER\n"
    return head + tomli_w.dumps(kept)


def _value(path: Path, field: dataclasses.Field[Any], value: Any) -> Any:
    """The value of one option, as the field has it."""
    several, wanted = isinstance(field.default, tuple), value_type(field)
    values = value if several else [value]
    if wanted is float and isinstance(values, list):
        values = [float(each) if type(each) is int and abs(each) < 2**53 else each for each in values]
    if not isinstance(values, list) or any(type(each) is not wanted for each in values):
        name = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}[wanted]
        kind = f"a list, each {name}" if several else name
        raise InputError(f"The file of options {path} gives {_flag(field.name)} as {printable(value, 40)}; it is {kind}.")
    choices = field.metadata.get("choices")
    if choices is not None and not set(values) <= set(choices):
        raise InputError(
            f"The file of options {path} gives {_flag(field.name)} as {printable(value, 40)}; choose from {', '.join(choices)}."
        )
    return tuple(values) if several else values[0]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
