"""The folder of a scan: one JSON line a model as it is done, so that a killed scan continues; then tables, page and log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onp.defend.folder import check_folder
from onp.errors import InputError
from onp.files import write_atomically
from onp.scan.row import Row

RESULTS, MODELS = "results.jsonl", "models"


class ScanFolder:
    """The results so far; nothing is written before the first row.

    Args:
        path: of the folder; None: nothing is read or written.
        resume: whether it may hold a scan already.

    Raises:
        InputError: it holds something else, or cannot be written, or its rows are damaged.
    """

    def __init__(self, path: str | None, resume: bool) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[str, Row] = {}  #: rows with a verdict, by identity
        if self.path is None:
            if resume:
                raise InputError("--resume needs --out, the folder of the scan to continue.")
            return
        file = self.path / RESULTS
        if not file.exists():
            check_folder(self.path, resume=False)
        elif not resume:
            raise InputError(f"The folder {self.path} holds a scan; continue it with --resume, or give --out a new one.")
        else:
            self.done = {row.identity: row for row in _read(file) if row.decision is not None}

    def report_of(self, name: str, identity: str) -> str | None:
        """The folder for the report of a model; absolute, since a worker may be anywhere."""
        if self.path is None:
            return None
        # Letters that every file system takes, and few enough of them.
        plain = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "_" for each in name)
        return str(self.path.absolute() / MODELS / f"{plain.strip('._')[-80:]}-{identity[:12]}")

    def append(self, row: Row) -> None:
        """Keep a row."""
        if self.path is not None:
            with self._writable(), (self.path / RESULTS).open("a", encoding="utf-8") as file:
                file.write(row.to_json() + "\n")

    def begin(self) -> None:
        """Make the folder one of a scan; drops a line that a kill cut off."""
        if self.path is not None:
            with self._writable():
                (self.path / MODELS).mkdir(parents=True, exist_ok=True)
            self.write(RESULTS, "".join(f"{row.to_json()}\n" for row in self.done.values()))

    def write(self, name: str, content: str) -> None:
        """Write a whole file; raises InputError where the disk refuses."""
        if self.path is not None:
            with self._writable():
                write_atomically(self.path / name, content)

    def finish(self, rows: Sequence[Row], files: dict[str, str]) -> None:
        """Write the rows of this scan in their order, and the other files."""
        self.write(RESULTS, "".join(f"{row.to_json()}\n" for row in rows))
        for name, content in files.items():
            self.write(name, content)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"The results cannot be written to {self.path} ({error.strerror}); free some space and give the same command "
                "with --resume."
            ) from error


def _read(file: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is left out."""
    try:
        whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
        return [Row.parse(json.loads(line)) for line in whole.splitlines()]
    except (KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{file} is damaged; delete it, and all models are scanned again.") from error
