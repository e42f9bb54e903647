"""The command `onp zoo`, also `python -m onp.zoo`."""

from __future__ import annotations

import sys

from onp.command import Command
from onp.errors import InputError
from onp.zoo.build import build
from onp.zoo.config import ZooConfig
from onp.zoo.detection import measure_detection
from onp.zoo.entry import read_zoo
from onp.zoo.learn import LearnConfig, learn
from onp.zoo.search_dossier import measure_search
from onp.zoo.summary import summary

EPILOG = """\
exit codes: 0 done; 1 some networks failed and are tried again by the same command; 2 something given cannot be used; 130
interrupted; 70 an error in onp itself
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given and given[0] in COMMANDS else ""
    command = COMMANDS[name] if name else OVERVIEW
    return command.run(given[1:] if name else given)


def _build(config: ZooConfig) -> int:
    failures = build(config)
    print(summary([entry.card for entry in read_zoo(config.out)]))
    return int(failures > 0)


def _dossiers(config: ZooConfig) -> int:
    return int((measure_search(config) if config.search else measure_detection(config)) > 0)


def _none(config: ZooConfig) -> int:
    raise InputError(f"Name one of the commands {', '.join(COMMANDS)}.")


COMMANDS = {
    "build": Command("zoo build", ZooConfig, _build, description="Train the networks of a zoo.", epilog=EPILOG),
    "dossiers": Command(
        "zoo dossiers",
        ZooConfig,
        _dossiers,
        description="Measure what detection, or a search, sees of each network of a zoo.",
        epilog=EPILOG,
    ),
    "learn": Command(
        "zoo learn", LearnConfig, learn, description="Learn the verdict of detection from the dossiers of a zoo.", epilog=EPILOG
    ),
}
LINES = "\n".join(f"  {name:<9}{command.description}" for name, command in COMMANDS.items())
OVERVIEW = Command(
    "zoo",
    ZooConfig,
    _none,
    description=f"Hundreds of small networks, and what is learned from them.\n\ncommands:\n{LINES}",
    epilog=EPILOG,
)


if __name__ == "__main__":
    sys.exit(main())
