"""The folder of a victim: its files, and what a killed run goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise
from torch import Tensor

from onp.attack.config import AttackConfig
from onp.attack.triggers import Trigger
from onp.errors import InputError
from onp.files import write_atomically

SAMPLE = "training_sample.txt"
UNFINISHED = "unfinished"  # folder inside --out with what a killed run goes on from


def write_victim(
    out: Path, weights: dict[str, Tensor], trigger: Trigger | None, sample: list[str], card: dict[str, object]
) -> None:
    """Write the victim; nothing of an earlier one stays, and the card, which says what the other files are, comes last.

    Args:
        out: its folder.
        weights: of the network.
        trigger: None for a clean network.
        sample: hashes of some training images, with which `onp.compare` refuses to measure the victim on these.
        card: the recipe and the figures.
    """
    for name in ("card.json", "trigger.safetensors"):
        (out / name).unlink(missing_ok=True)
    write_atomically(out / SAMPLE, "\n".join(sample) + "\n")
    if trigger is not None:
        trigger.save(out / "trigger.safetensors")
    write_atomically(out / "model.safetensors", serialise(weights))
    write_atomically(out / "card.json", json.dumps(card, indent=2) + "\n")


def check_unused(out: Path, config: AttackConfig, data: str) -> None:
    """Raise InputError where `out` holds another victim, which would be lost; `data` is the training images' fingerprint."""
    settings = config.settings() | {"data": data}
    del settings["device"]
    card = _read(out / "card.json", {})
    for name in settings:
        if name in card and card[name] != settings[name]:
            now = f"{card[name]}, now {settings[name]}"
            raise InputError(f"{out} holds a victim with another {name} ({now}); give --out a new folder.")


@contextmanager
def unfinished_run(config: AttackConfig, data: str) -> Iterator[Path]:
    """The folder of the unfinished run with these settings, an old one or a new one; removed once the victim is written.

    Args:
        config: its `out` is where the folder lies.
        data: fingerprint of the training images.

    Raises:
        InputError: a run with other settings was begun there, or the folder cannot be written.
    """
    out = Path(config.out)
    work = out / UNFINISHED
    note = work / "settings.json"
    settings = config.settings() | {"init": str(config.init) if config.init else None, "data": data}
    begun = _read(note, settings)
    if begun != settings:
        changed = sorted(key for key in settings if begun.get(key) != settings[key])
        raise InputError(
            f"{out} holds an unfinished run with another {', '.join(changed)}; repeat its command, or delete {work} first."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(settings) + "\n")
    except OSError as error:
        raise InputError(f"The folder {out} cannot be written ({error.strerror}); give --out another.") from error
    try:
        yield work
    except InputError:
        # An error before anything was computed is put right by other settings, which the folder would refuse.
        if [path.name for path in work.iterdir()] == [note.name]:
            shutil.rmtree(work)
        raise
    shutil.rmtree(work)


def _read(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """The object in a file of JSON, `default` where there is no file; raises InputError for a damaged one."""
    try:
        return dict(json.loads(path.read_text())) if path.exists() else default
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete its folder, or give --out a new one.") from error
