"""Files: untrusted ones are read within limits, and our own are written so that a reader never sees half of one."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from onp.errors import InputError

SHARE = 0.5  # of the free memory, that the content of one image set or checkpoint may take
TEMPORARY = re.compile(r"\..+\.([1-9]\d*)\.tmp")  # what write_atomically writes to, with the number of its process


class ByteBudget:
    """How many bytes one image set or checkpoint may still take in memory; threads may share it.

    Args:
        total: bytes; half of the machine's free memory where it is not given.
    """

    def __init__(self, total: int | None = None) -> None:
        self.left = int(SHARE * free_memory()) if total is None else total
        self._lock = threading.Lock()

    def take(self, count: int, what: object) -> None:
        """Take `count` bytes before they are read.

        Raises:
            InputError: that many are not left; the message names `what`.
        """
        with self._lock:
            if count > self.left:
                raise InputError(
                    f"{what} unpacks to more than this machine's memory can hold ({count / 2**20:,.0f} MiB more); "
                    "it is damaged, or give a smaller one."
                )
            self.left -= count


def free_memory() -> int:
    """Bytes that programs can still have without swapping; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 4 * 2**30


def file_kind(path: Path) -> Literal["file", "folder", "other"] | None:
    """What lies at `path`, links followed: None for nothing, "other" for a device, pipe or socket.

    Raises:
        InputError: the system cannot say, as for a name that is too long or in a folder that one may not enter.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"The path {str(path)[:100]} cannot be used ({reason}); give another one.") from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file from a stranger: of no device, pipe or socket, and at most `limit` bytes.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    try:
        # Without waiting, since opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is no ordinary file; remove it.")
            if found.st_size > limit:
                raise InputError(f"The file {path} has {found.st_size} bytes, and {limit} at most are read of such a file.")
            return file.read(limit)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}); repair or remove it.") from error


def encoded(content: bytes | str) -> bytes:
    """A text as it is written: names of files and classes may hold bytes that are no UTF-8, which are shown as escapes."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary file beside `path`, then rename it: the old file or the new one exists, never a part."""
    data = encoded(content)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether `path` has the name of a file that `write_atomically` has not finished."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove what `write_atomically` left in `folder` when its process was killed; those of running processes stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = TEMPORARY.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process has this number; on Windows, where asking would end it, none has."""
    if os.name != "posix" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def check_apart(folder: Path, sources: Iterable[str | None]) -> None:
    """Make sure that `folder` is in no set of images, also through no link: it would become a class of the next run.

    Args:
        folder: to be written; it may be missing.
        sources: PATH or PATH::FOLDER of images; None for one that was not given.

    Raises:
        InputError: it is, or a path cannot be used.
    """
    places = (folder, *folder.absolute().parents, *Path(os.path.realpath(folder)).parents)
    above = {_identity(path) for path in places if file_kind(path) is not None}
    for source in filter(None, sources):
        name, _, inner = source.partition("::")
        top = Path(name, inner) if file_kind(Path(name, inner)) == "folder" else Path(name)
        visited: set[tuple[int, int]] = set()
        for here, folders, _ in os.walk(top, followlinks=True):
            found = _identity(Path(here))
            if found in above:
                raise InputError(f"The folder {folder} lies among the images of {name}; give --out a folder elsewhere.")
            if found in visited:  # links to each other; the reader of the images says so
                folders.clear()
            visited.add(found)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
