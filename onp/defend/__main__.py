"""The command line of `python -m onp.defend`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from onp.defend import Outcome, defend
from onp.defend.config import DefendConfig
from onp.defend.decision import exit_code
from onp.defend.demos import DEMOS
from onp.errors import InputError
from onp.options import Parser, add_options
from onp.resume import FOLDER

EPILOG = """\
exit codes: 0 nothing found; 1 evidence of a backdoor found, repaired or not; 2 something given cannot be used; 3 evidence
found and no repair possible; 130 interrupted
example: python -m onp.defend --model model.pth --arch resnet18:width=64 --norm cifar10 --data clean/ --out repaired/
"""


def parser() -> argparse.ArgumentParser:
    """The options of DefendConfig, and --list-demos."""
    out = Parser(
        prog="python -m onp.defend",
        description="Tell whether an image classifier is backdoored and repair it, from a few hundred clean images. "
        "Without options: the embedded example.",
        epilog=EPILOG,
    )
    add_options(out, DefendConfig)
    out.add_argument("--list-demos", action="store_true", help="name the embedded examples and stop")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = vars(parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO if options["verbose"] else logging.WARNING, format="%(message)s")
    if options.pop("list_demos"):
        print("\n".join(f"{name:<9}{text}" for name, text in DEMOS.items()))
        return 0
    config = DefendConfig(**options)
    try:
        outcome = defend(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = config.out is not None and (Path(config.out) / FOLDER).exists()
        print("Interrupted; " + ("continue with --resume." if kept else "nothing was written."), file=sys.stderr)
        return 130
    return show(outcome, config)


def show(outcome: Outcome, config: DefendConfig) -> int:
    """Print the report as the options ask, and return the exit code that goes with its decision."""
    decision = outcome.report.decision
    if config.json:
        print(outcome.report.to_json(), end="")
    else:
        print(outcome.report.to_text(), end="")
        if config.out is not None:
            print(f"Written to {config.out}; open report.html there in a browser.")
        elif decision == "repaired":
            print("Nothing was written; give --out DIR to keep the repaired checkpoint and the report.")
    return exit_code(decision, config.fail_on)


if __name__ == "__main__":
    sys.exit(main())
