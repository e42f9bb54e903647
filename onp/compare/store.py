"""The folder of a table: one file a cell, so that a killed run continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onp.compare.cell import Cell
from onp.errors import InputError
from onp.files import write_atomically

SETTINGS = "settings.json"


class Store:
    """The results so far. Raises InputError for a folder that holds something else, or a table with other settings.

    Nothing is written before `begin`.
    """

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self._cells, self._settings = folder / "cells", settings
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
        """Whether the cell has figures; one that failed is tried again."""
        row = self.get(cell)
        return row is not None and "error" not in row

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The row of a cell, None where it never ran."""
        path = self._path(cell)
        return json.loads(path.read_text()) if path.exists() else None

    def put(self, cell: Cell, result: dict[str, Any] | Exception) -> None:
        """Keep what a cell gave: its figures, or the sentence that says why there are none."""
        names = {"victim": cell.victim.name, "attack": cell.victim.attack, "arch": cell.victim.arch, "data": cell.victim.data}
        row = names | {"defence": cell.defence, "seed": cell.seed}
        row |= result if isinstance(result, dict) else {"error": sentence(result)}
        write_atomically(self._path(cell), json.dumps(row, indent=1) + "\n")

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
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"The folder {folder} cannot be used ({error}); give --out another.") from error


def _same(folder: Path, old: dict[str, object], new: dict[str, object]) -> None:
    for name, value in new.items():
        if old.get(name) != value:
            raise InputError(
                f"{folder} holds a table made with --{name.replace('_', '-')} {old.get(name)}, not {value}; "
                "use the same, or give --out a new folder."
            )
