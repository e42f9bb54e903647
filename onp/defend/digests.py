"""SHA-256 of files and folders, as `sha256sum` gives it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from onp.defend.report.sections import FileDigest
from onp.errors import InputError, printable

PIECE = 2**20  #: bytes that are read at a time
MOST_FILES = 1_000_000  #: of a folder

State = tuple[int, ...]
"""What the system says of a file: another one once it is written or replaced, unless somebody sets the clock back."""


class FileState:
    """The files at a path as they are now, to notice later whether one of them was changed.

    Args:
        path: a file or a folder; hidden files of a folder are left out, and so is what is no ordinary file.

    Raises:
        InputError: a folder holds more than `most_files` files, or cannot be walked.
    """

    def __init__(self, path: Path, most_files: int = MOST_FILES) -> None:
        self.path, self.is_folder = path, path.is_dir()
        self._states: dict[bytes, State] = {}
        try:
            for name in _walk(path) if self.is_folder else [b""]:
                found = os.stat(os.path.join(os.fsencode(path), name) if name else path)
                if stat.S_ISREG(found.st_mode):
                    self._states[name] = _state(found)
                if len(self._states) > most_files:
                    raise InputError(f"The folder {path} holds more than {most_files:,} files; give one with the images only.")
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); repair or remove it.") from error

    def digest(self, role: str, name: str) -> FileDigest:
        r"""The SHA-256 of the content.

        Of a file it is that of its bytes. Of a folder it is that of the lines that `sha256sum` prints for its files, sorted by
        the bytes of their names; in the folder, with GNU tools:
        `find -L . -type f -not -path '*/.*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`.

        Args:
            role: what the files are to the run.
            name: to give them in the report.

        Raises:
            InputError: a file is missing or not the one that was there when this object was made.
        """
        if not self.is_folder:
            return FileDigest(role, name, *self._file(b""))
        manifest, total = hashlib.sha256(), 0
        for below in sorted(self._states):
            found, size = self._file(below)
            manifest.update(manifest_line(found, below))
            total += size
        return FileDigest(role, name, manifest.hexdigest(), total)

    @property
    def holds_files(self) -> bool:
        """Whether there is anything to hash."""
        return bool(self._states)

    def _file(self, name: bytes) -> tuple[str, int]:
        path = os.path.join(os.fsencode(self.path), name) if name else os.fsencode(self.path)
        found, size = hashlib.sha256(), 0
        try:
            with open(path, "rb") as file:
                before = _state(os.fstat(file.fileno()))
                while piece := file.read(PIECE):
                    found.update(piece)
                    size += len(piece)
                after = _state(os.fstat(file.fileno()))
        except OSError as error:
            raise _changed(path) from error
        if not before == after == self._states.get(name):
            raise _changed(path)
        return found.hexdigest(), size


def manifest_line(sha256: str, name: bytes) -> bytes:
    """The line that `sha256sum` prints for a file, with its escapes for line breaks and backslashes in names."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + sha256.encode() + b"  " + escaped + b"\n"


def _walk(folder: Path) -> Iterator[bytes]:
    """Names below a folder, links followed, each folder once."""
    base = os.fsencode(folder)
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(base, followlinks=True, onerror=fail):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:  # through a link to a folder above
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        below = os.path.relpath(here, base)
        for name in files:
            path = os.path.join(here, name)
            if not name.startswith(b".") and os.path.exists(path):  # no link that leads nowhere
                yield name if below == b"." else os.path.join(below, name)


def _state(found: os.stat_result) -> State:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _changed(path: bytes) -> InputError:
    return InputError(f"{printable(os.fsdecode(path))} was changed while it was read; give the same command again.")
