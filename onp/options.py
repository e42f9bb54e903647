"""Command-line options from the fields of a frozen dataclass: the Python call, --help and the report share one text each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the whole usage before it; its epilog keeps its line breaks."""

    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with code 2."""
        self.exit(2, f"error: {message}; --help lists the options.\n")


def option(default: Any, text: str, *, group: str | None = None, **more: Any) -> Any:
    """A dataclass field that is also an option of the command line.

    Args:
        default: of the field; () for an option that takes several values.
        text: its line in --help.
        group: heading in --help under which the option stands.
        more: keywords for `argparse.ArgumentParser.add_argument`, such as `metavar`, `choices`, `required` or `type`.
    """
    return dataclasses.field(default=default, metadata={"help": text, "group": group, **more})


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Add an option for each field of `config` that `option` made: --max-acc-drop for `max_acc_drop`.

    A bool is a flag, one that is True by default also has a --no- form. A tuple takes several values. The type is that of the
    default, or str where the default is None or a tuple, unless the option has a `type` of its own. The parsed namespace holds
    exactly the values of the fields.
    """
    headings: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        more: dict[str, Any] = dict(field.metadata)
        text, heading = more.pop("help").replace("%", "%%"), more.pop("group")
        place = headings.setdefault(heading, parser.add_argument_group(heading)) if heading else parser
        place.add_argument("--" + field.name.replace("_", "-"), default=field.default, **_keywords(field.default, text) | more)


def _keywords(default: Any, text: str) -> dict[str, Any]:
    """Keywords of `add_argument` that follow from the default."""
    if isinstance(default, bool):
        return {"help": text, "action": argparse.BooleanOptionalAction if default else "store_true"}
    several = isinstance(default, tuple)
    shown = " ".join(map(str, default)) if several else default
    text += "" if shown in (None, "") else f" (default: {shown})"
    if several:
        return {"help": text, "type": str, "nargs": "+", "action": _AsTuple}
    return {"help": text, "type": str if default is None else type(default)}


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
