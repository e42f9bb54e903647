"""The command line of `python -m onp.compare`."""

from __future__ import annotations

import argparse
import logging
import sys

from onp.compare import CompareConfig, compare
from onp.errors import InputError
from onp.options import Parser, add_options

EPILOG = """\
exit codes: 0 done; 1 some cells failed (the table says why); 2 something given cannot be used
examples:
  python -m onp.compare --defences onp clp anp --seeds 0 1 2 --out table
  python -m onp.compare --attacks badnets blended none --data cifar10.tar.xz --test-data cifar10.tar.xz::test --out table
"""


def parser() -> argparse.ArgumentParser:
    """The options of CompareConfig."""
    out = Parser(
        prog="python -m onp.compare",
        description="Backdoored victims x defences x seeds -> one table. No defence sees a trigger or a test image.",
        epilog=EPILOG,
    )
    add_options(out, CompareConfig)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    config = CompareConfig(**vars(parser().parse_args(arguments)))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        rows = compare(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: The table cannot be written to {config.out} ({error.strerror}); make room, and repeat.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    failed = sum("error" in row for row in rows)
    print(f"{len(rows) - failed} cells done, {failed} failed; the table is {config.out}/results.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
