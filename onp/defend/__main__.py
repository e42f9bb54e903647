"""The command `onp defend`, also `python -m onp.defend`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from onp.command import Command
from onp.defend import Outcome, defend
from onp.defend.config import DefendConfig
from onp.defend.decision import REPAIRS, exit_code
from onp.defend.demos import DEMOS
from onp.resume import FOLDER

EPILOG = """\
exit codes: 0 nothing found; 1 evidence of a backdoor found, repaired or not; 2 something given cannot be used; 3 evidence
found and no repair possible; 130 interrupted; 70 an error in onp itself
example: onp defend --model model.pth --arch resnet18:width=64 --norm cifar10 --data clean/ --out repaired/
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return COMMAND.run(arguments)


def _defend(config: DefendConfig) -> int:
    logging.basicConfig(level=logging.INFO if config.verbose else logging.WARNING, format="%(message)s")
    return show(defend(config), config)


def show(outcome: Outcome, config: DefendConfig) -> int:
    """Print the report as the options ask, and return the exit code that goes with its decision."""
    decision = outcome.report.decision
    if config.json:
        print(outcome.report.to_json(), end="")
    else:
        print(outcome.report.to_text(), end="")
        if config.out is not None:
            print(f"Written to {config.out}; open report.html there in a browser.")
        elif decision in REPAIRS:
            print("Nothing was written; give --out DIR to keep the repaired checkpoint and the report.")
    return exit_code(decision, config.fail_on)


def _interrupted(config: DefendConfig | None) -> str:
    kept = config is not None and config.out is not None and (Path(config.out) / FOLDER).exists()
    return "continue with --resume." if kept else "nothing was written."


COMMAND = Command(
    "defend",
    DefendConfig,
    _defend,
    description="Tell whether an image classifier shows evidence of a backdoor and repair it, from a few hundred clean images. "
    "Without options: the embedded example.",
    epilog=EPILOG,
    lists=(
        ("--list-demos", "name the embedded examples and stop", "\n".join(f"{name:<9}{text}" for name, text in DEMOS.items())),
    ),
    interrupted=_interrupted,
)


if __name__ == "__main__":
    sys.exit(main())
