"""The command `onp scan`, also `python -m onp.scan`."""

from __future__ import annotations

import logging
import sys

from onp.command import Command
from onp.scan import ScanConfig, scan
from onp.scan.tables import text_table

EPILOG = """\
exit codes, the worst of all models: 0 nothing found; 1 evidence of a backdoor, or a checkpoint that can run code when it is
opened; 2 something given cannot be used, or no model could be examined; 130 interrupted; 70 an error in onp itself. A model
that could not be scanned counts with --fail-on inconclusive only.
examples:
  onp scan checkpoints/ --norm cifar10 --data clean/ --out scan
  onp scan models.toml --data clean/ --out scan --ray auto --resume
  onp scan model.safetensors --arch resnet18:width=64 --norm cifar10 --data clean/
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return COMMAND.run(arguments)


def _scan(config: ScanConfig) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    result = scan(config)
    if config.json:
        print("".join(f"{row.to_json()}\n" for row in result.rows), end="")
    elif result.text is not None:
        print(result.text, end="")
    else:
        print(text_table(result.rows) + "\n" + result.summary())
    if config.out is not None and not config.json:
        print(f"Written to {config.out}; open index.html there in a browser.")
    return result.exit_code(config.fail_on)


def _interrupted(config: ScanConfig) -> str:
    return "nothing was written." if config is None or config.out is None else "continue with --resume."


COMMAND = Command(
    "scan",
    ScanConfig,
    _scan,
    description="Tell which of many image classifiers show evidence of a backdoor, from a few hundred clean images. Repairs "
    "nothing.",
    epilog=EPILOG,
    interrupted=_interrupted,
)


if __name__ == "__main__":
    sys.exit(main())
