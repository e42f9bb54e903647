"""The command `onp compare`, also `python -m onp.compare`."""

from __future__ import annotations

import logging
import sys

from onp.command import Command
from onp.compare import CompareConfig, compare
from onp.errors import InputError

EPILOG = """\
exit codes: 0 done; 1 some cells failed (the table says why); 2 something given cannot be used; 130 interrupted; 70 an error in
onp itself
examples:
  onp compare --defences onp clp anp --seeds 0 1 2 --out table
  onp compare --attacks badnets blended none --data cifar10.tar.xz --test-data cifar10.tar.xz::test --out table
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return COMMAND.run(arguments)


def _compare(config: CompareConfig) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        rows = compare(config)
    except OSError as error:
        raise InputError(f"The table cannot be written to {config.out} ({error.strerror}); make room, and repeat.") from error
    failed = sum("error" in row for row in rows)
    print(f"{len(rows) - failed} cells done, {failed} failed; the table is {config.out}/results.md")
    return 1 if failed else 0


COMMAND = Command(
    "compare",
    CompareConfig,
    _compare,
    description="Backdoored victims x defences x seeds -> one table. No defence sees a trigger or a test image.",
    epilog=EPILOG,
)


if __name__ == "__main__":
    sys.exit(main())
