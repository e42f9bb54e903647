"""The command line of `python -m onp.compare`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from typing import Any

from onp.compare import CompareConfig, compare
from onp.errors import InputError

EPILOG = """\
exit codes: 0 done; 1 some cells failed (the table says why); 2 something given cannot be used
examples:
  python -m onp.compare --defences onp clp anp --seeds 0 1 2 --out table
  python -m onp.compare --attacks badnets blended none --data cifar10.tar.xz --test-data cifar10.tar.xz::test --out table
"""


def parser() -> argparse.ArgumentParser:
    """The options of CompareConfig."""
    out = argparse.ArgumentParser(
        prog="python -m onp.compare",
        description="Backdoored victims x defences x seeds -> one table. No defence sees a trigger or a test image.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(CompareConfig):
        default: Any = field.default
        more = dict(field.metadata)
        text = more.pop("help").replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        several = isinstance(default, tuple)
        if isinstance(default, bool):
            out.add_argument(flag, action="store_true", help=text)
            continue
        shown = " ".join(map(str, default)) if several else default
        kind = int if field.name == "seeds" else str if several or default is None else type(default)
        text += "" if shown in (None, "") else f" (default: {shown})"
        out.add_argument(
            flag,
            type=kind,
            default=default,
            required=field.name == "out",
            help=text,
            **({"nargs": "+"} if several else {}),
            **more,
        )
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options: dict[str, Any] = vars(parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    config = CompareConfig(**given)
    try:
        rows = compare(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    failed = sum("error" in row for row in rows)
    print(f"{len(rows) - failed} cells done, {failed} failed; the table is {config.out}/results.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
