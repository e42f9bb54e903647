"""The folder of a table: one file a cell, so that a killed run continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onp.compare.cell import Cell
from onp.compare.victims import VictimFiles, content
from onp.errors import InputError
from onp.files import write_atomically

SETTINGS = "settings.json"
NAMES = {"victim", "attack", "arch", "data", "defence", "seed"}  # of every row


class TableFolder:
    """The results so far; nothing is written before `begin`.

    Raises:
        InputError: the folder holds something else, or a table with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self._cells, self._settings = folder / "cells", settings
        self._contents: dict[VictimFiles, dict[str, Any]] = {}
        path = folder / SETTINGS
        with _usable(folder):
            if path.exists():
                _same(folder, json.loads(path.read_text()), settings)
            elif folder.exists() and any(folder.iterdir()):
                raise InputError(f"The folder {folder} is not empty and holds no table; give --out a new one.")

    def begin(self) -> None:
        """Make the folder one of a table with these settings; raises InputError where it cannot be written."""
        with _usable(self._cells.parent):
            self._cells.mkdir(parents=True, exist_ok=True)
            write_atomically(self._cells.parent / SETTINGS, json.dumps(self._settings, indent=2) + "\n")

    def done(self, cell: Cell) -> bool:
        """Whether the cell has figures, with an ASR where there is an attack; one that failed is tried again."""
        row = self.get(cell)
        return row is not None and "error" not in row and ("asr" in row) == (cell.victim.attack != "none")

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The row of a cell, None where it never ran.

        Raises:
            InputError: the file is damaged, or its figures are of other files than those of the cell's victim.
        """
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            row = dict(json.loads(path.read_text()))
            measured = "acc" in row and isinstance(row.get("content"), dict)
            if not row.keys() >= NAMES or not ("error" in row or measured):
                raise ValueError
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged; delete it, and its cell runs again.") from error
        if "error" not in row:  # a cell that failed runs again
            now = self._content(cell.victim)
            changed = [name for name in now if row["content"].get(name) != now[name]]
            if changed:
                raise InputError(f"{path} is of a victim with another {changed[0]} of that name; give --out a new folder.")
        return row

    def put(self, cell: Cell, result: dict[str, Any] | Exception) -> None:
        """Write the result of a cell: its figures, or the sentence that says why there are none."""
        names = {"victim": cell.victim.name, "attack": cell.victim.attack, "arch": cell.victim.arch, "data": cell.victim.data}
        row = names | {"defence": cell.defence, "seed": cell.seed}
        if isinstance(result, dict):
            row |= result | {"content": self._content(cell.victim)}
        else:
            row["error"] = sentence(result)
        write_atomically(self._path(cell), json.dumps(row, indent=1) + "\n")

    def _content(self, victim: VictimFiles) -> dict[str, Any]:
        if victim not in self._contents:
            self._contents[victim] = content(victim)
        return self._contents[victim]

    def _path(self, cell: Cell) -> Path:
        return self._cells / f"{cell.key}.json"


def sentence(error: Exception) -> str:
    """One line about an exception."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The folder {folder} cannot be used ({error}); give --out another.") from error


def _same(folder: Path, old: Any, new: dict[str, object]) -> None:
    if not isinstance(old, dict):
        raise InputError(f"{folder / SETTINGS} is damaged; give --out a new folder.")
    for name, value in new.items():
        if old.get(name) != value:
            raise InputError(
                f"{folder} holds a table made with --{name.replace('_', '-')} {old.get(name)}, not {value}; "
                "use the same, or give --out a new folder."
            )
