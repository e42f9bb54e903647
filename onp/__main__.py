"""The command `onp`, also `python -m onp`: its subcommands, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

from onp.command import guarded
from onp.options import Parser

COMMANDS = {
    "scan": "tell which checkpoints of a folder or list show evidence of a backdoor; repairs nothing",
    "defend": "tell whether one network shows evidence of a backdoor, and repair it",
    "verify": "ask whether a repaired checkpoint still obeys triggers",
    "attack": "train a backdoored network for tests of defences",
    "compare": "run defences on backdoored networks and write one table",
    "zoo": "train hundreds of small networks, and learn the verdict from them",
    "version": "print the version of onp",
}
MODULES = {"verify": ("onp.defend", "--verify")}
"""Where a subcommand does not have the name of its package: the package, and the options it begins with."""

EPILOG = """\
exit codes: 0 nothing found; 1 evidence of a backdoor found, repaired or not; 2 something given cannot be used; 3 evidence
found and no repair possible; 130 interrupted; 70 an error in onp itself
examples:
  onp defend --demo badnets --out repaired
  onp scan checkpoints/ --norm cifar10 --data clean/ --out scan
  onp verify --model repaired/model.pth --arch resnet18 --norm cifar10 --data clean/
  onp defend --config repaired/config.toml --out again
"onp COMMAND --help" lists the options of a subcommand; "python -m onp.defend" is "onp defend", and so for the others.
"""


def parser() -> Parser:
    """The options of `onp` itself."""
    lines = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
    return Parser(
        prog="onp",
        usage="onp COMMAND [options]",
        description=f"Find and prune the neurons that carry a backdoor in an image classifier.\n\ncommands:\n{lines}",
        epilog=EPILOG,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _run(given), lambda: "--json" in given, lambda: "nothing was begun.")


def _run(given: list[str]) -> int:
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name == "version" or name.startswith("-"):
        with suppress(SystemExit):  # of --help and --version
            parser().parse_args([*rest, "--version"] if name == "version" else given)
        return 0
    if name not in COMMANDS:
        wrong = f"There is no command {name}" if name else "No command was given"
        parser().error(f"{wrong}; name one of {', '.join(COMMANDS)}")
    package, *options = MODULES.get(name, (f"onp.{name}",))
    code = importlib.import_module(f"{package}.__main__").main([*options, *rest])
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
