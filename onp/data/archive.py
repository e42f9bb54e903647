"""Tar archives from strangers, read as a stream: nothing is unpacked to disk, and no header is believed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from onp.errors import InputError, printable

COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
LARGEST = 8 * 2**30  #: bytes of a member of a compressed archive that is passed over; of a plain one, those of the file
HEADER = 2**20  #: bytes of a header in several blocks, such as a long name
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class _Header(tarfile.TarInfo):
    """tarfile takes a damaged header, or none, for the archive's end; here only the closing zero block is."""

    largest: ClassVar[int]

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("damaged or missing header") from error
        member._check()
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> _Header:
        """Before tarfile reads on as the header says, which may be for ever."""
        self._check()
        return super()._proc_member(archive)  # type: ignore[misc]

    def _check(self) -> None:
        extended = self.type not in _PLAIN and not self.isdir() and not self.islnk() and not self.issym()
        if not 0 <= self.size <= (min(HEADER, self.largest) if extended else self.largest):
            raise tarfile.ReadError("a header with an impossible size")
        if self.type == tarfile.GNUTYPE_SPARSE or self.issparse():
            raise tarfile.ReadError("a file with holes, which takes no room in an archive")


def members(path: Path, limit: int) -> Iterator[tuple[str, Callable[[], bytes] | None]]:
    """The members of the archive `path`, plain or compressed: (name, how to read it), None for a folder.

    A member is read before the next is asked for, or not at all. Links and special files are left out.

    Args:
        limit: bytes of a member that is read.

    Raises:
        tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error: the archive is damaged.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    unpack = next((unpack for start, unpack in COMPRESSIONS.items() if magic.startswith(start)), None)
    header = type("_Header", (_Header,), {"largest": LARGEST if unpack else path.stat().st_size})
    # Streamed through the decompressors' own modules, which notice a truncation that tarfile's do not; the buffer
    # spares a Python call a header.
    with (
        (unpack or open)(path, "rb") as plain,
        io.BufferedReader(plain, 2**20) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=header) as archive,
    ):
        for member in archive:
            if member.isdir():
                yield member.name, None
            elif member.isfile():
                yield member.name, partial(_content, archive, member, limit)
        # To the end of the file, where the checksums are.
        while stream.read(2**20):
            pass


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise InputError(f"The file {printable(member.name)} of the archive is too large to be an image.")
    content = archive.extractfile(member)
    assert content is not None  # only regular files get here
    return content.read()
