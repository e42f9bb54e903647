"""The command line of `python -m onp.attack`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from onp.attack import AttackConfig, attack
from onp.attack.triggers import TRIGGERS
from onp.errors import InputError
from onp.model.archs import NETWORKS
from onp.options import Parser, add_options


def parser() -> argparse.ArgumentParser:
    """The options of AttackConfig."""
    attacks = "\n".join(f"  {name:<17}{kind.summary}" for name, kind in TRIGGERS.items())
    out = Parser(
        prog="python -m onp.attack",
        description="Train a backdoored victim for tests of defences.",
        epilog=f"attacks:\n{attacks}\n\nnetworks: {', '.join(NETWORKS)}",
    )
    add_options(out, AttackConfig)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for bad input."""
    config = AttackConfig(**vars(parser().parse_args(arguments)))
    try:
        figures = attack(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: The folder {config.out} cannot be written ({error.strerror}); give --out another.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    print("  ".join(f"{name.upper()} {100 * value:.1f} %" for name, value in figures.items()) + f"  -> {config.out}")
    print(f"To repair it: {defence_command(config)}")
    return 0


def defence_command(config: AttackConfig) -> str:
    """The command that gives the victim to `onp.defend`, with the options for measuring where there is a trigger."""
    folder = Path(config.out)
    command = ["python", "-m", "onp.defend", "--model", str(folder / "model.safetensors"), "--arch", config.arch]
    command += ["--norm", config.norm, "--data", "CLEAN_IMAGES"]
    if config.attack != "none":
        command += ["--eval-data", config.test_data, "--eval-trigger", str(folder / "trigger.safetensors")]
    return shlex.join(command)


if __name__ == "__main__":
    sys.exit(main())
