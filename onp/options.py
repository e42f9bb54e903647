"""Command-line options from the fields of a frozen dataclass: the Python call, --help and the report share one text each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from onp.errors import InputError
from onp.version import VERSION


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an `InputError` of one sentence; its epilog keeps its line breaks.

    Names are not abbreviated: what a script calls today may be two options tomorrow.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        self.add_argument("--version", action="version", version=f"onp {VERSION}", help="print the version of onp and stop")

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of printing the usage."""
        raise InputError(f"{message}; --help lists the options.")


def option(default: Any, text: str, *, group: str | None = None, **more: Any) -> Any:
    """A dataclass field that is also an option of the command line.

    Args:
        default: of the field; () for an option that takes several values.
        text: its line in --help.
        group: heading in --help under which the option stands.
        more: keywords for `argparse.ArgumentParser.add_argument`, such as `metavar`, `choices`, `required` or `type`;
            `positional` for values that stand without a name.
    """
    return dataclasses.field(default=default, metadata={"help": text, "group": group, **more})


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Add an option for each field of `config` that `option` made: --max-acc-drop for `max_acc_drop`.

    A bool is a flag; --help shows the form that changes the default, and the other one undoes what a file of options says. A
    tuple takes several values. The type is that of `value_type`. The parsed namespace holds exactly the values of the fields.
    """
    headings: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        more: dict[str, Any] = dict(field.metadata)
        text, heading = more.pop("help").replace("%", "%%"), more.pop("group")
        place = headings.setdefault(heading, parser.add_argument_group(heading)) if heading else parser
        flag = "--" + field.name.replace("_", "-")
        if more.pop("positional", False):
            place.add_argument(field.name, default=field.default, **_keywords(field, text) | {"nargs": "*"} | more)
        elif isinstance(field.default, bool):
            action = place.add_argument(flag, "--no-" + flag[2:], action=_Flag, default=field.default, help=text, **more)
            action.option_strings = [action.option_strings[field.default]]
        else:
            place.add_argument(flag, default=field.default, **_keywords(field, text) | more)


def value_type(field: dataclasses.Field[Any]) -> type:
    """The type of an option's value, or of one of its values: its own, that of the default, or str for None and a tuple."""
    of_default = str if field.default is None or isinstance(field.default, tuple) else type(field.default)
    return field.metadata.get("type", of_default)


def _keywords(field: dataclasses.Field[Any], text: str) -> dict[str, Any]:
    """Keywords of `add_argument` that follow from the default."""
    default: Any = field.default
    several = isinstance(default, tuple)
    shown = " ".join(map(str, default)) if several else default
    text += "" if shown in (None, "") else f" (default: {shown})"
    return {"help": text, "type": value_type(field)} | ({"nargs": "+", "action": _AsTuple} if several else {})


class _Flag(argparse.Action):
    """--name for True, --no-name for False; `argparse.BooleanOptionalAction` would show both in --help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **more)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


class _AsTuple(argparse.Action):
    """Stores several values as a tuple, as the field has them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, tuple(values or ()))
