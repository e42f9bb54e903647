"""The command `onp attack`, also `python -m onp.attack`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from onp.attack import AttackConfig, attack
from onp.attack.triggers import TRIGGERS
from onp.command import Command
from onp.errors import InputError
from onp.model.archs import NETWORKS

ATTACKS = "\n".join(f"  {name:<17}{kind.summary}" for name, kind in TRIGGERS.items())
EPILOG = f"""\
attacks:
{ATTACKS}

networks: {", ".join(NETWORKS)}
exit codes: 0 done; 2 something given cannot be used; 130 interrupted; 70 an error in onp itself
example: onp attack --attack badnets --data train.npz --test-data test.npz --out victim
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return COMMAND.run(arguments)


def _attack(config: AttackConfig) -> int:
    try:
        figures = attack(config)
    except OSError as error:
        raise InputError(f"The folder {config.out} cannot be written ({error.strerror}); give --out another.") from error
    print("  ".join(f"{name.upper()} {100 * value:.1f} %" for name, value in figures.items()) + f"  -> {config.out}")
    print(f"To repair it: {defence_command(config)}")
    return 0


def defence_command(config: AttackConfig) -> str:
    """The command that gives the victim to `onp defend`, with the options for measuring where there is a trigger."""
    folder = Path(config.out)
    command = ["onp", "defend", "--model", str(folder / "model.safetensors"), "--arch", config.arch]
    command += ["--norm", config.norm, "--data", "CLEAN_IMAGES"]
    if config.attack != "none":
        command += ["--eval-data", config.test_data, "--eval-trigger", str(folder / "trigger.safetensors")]
    return shlex.join(command)


COMMAND = Command(
    "attack", AttackConfig, _attack, description="Train a backdoored victim for tests of defences.", epilog=EPILOG
)


if __name__ == "__main__":
    sys.exit(main())
