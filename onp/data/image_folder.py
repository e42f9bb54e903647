"""Image files of a folder or a tar archive, decoded in memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onp.data.metadata import is_metadata, labels_from
from onp.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
# Only decoders of plain raster files: Pillow would otherwise also try formats that start other programs.
DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")
# A file that claims more pixels (or an archive member more bytes) is taken for a decompression bomb.
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 512 * 2**20
CHUNK = 1024
THREADED_BYTES = 8192
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}

Size = tuple[int, int]
Name = tuple[str, ...]  # a path inside a folder or archive


def fit(image: Image.Image, size: Size | None, channels: int | None) -> np.ndarray:
    """Pixels uint8 `[C, H, W]`: scaled to cover `size` (H, W) and cropped at the centre, 1 or 3 channels.

    Without `channels` grayscale files give 1 channel and all others 3; transparency is dropped.
    """
    gray = image.mode in ("1", "L", "LA")
    mode = "L" if channels == 1 or (channels is None and gray) else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (image.height, image.width) != size:
        height, width = size
        scale = max(height / image.height, width / image.width)
        scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        image = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def decode(name: str, content: bytes, size: Size | None, channels: int | None) -> np.ndarray:
    """The pixels uint8 `[C, H, W]` of one image file; raises InputError with its name when it is damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"The image {name} has more than {MAX_PIXELS} pixels; scale it down or remove it.")
            if image.mode.startswith(("I", "F")):
                raise InputError(f"The image {name} has more than 8 bits a channel; convert it to 8 bits.")
            return fit(image, size, channels)
    except InputError:
        raise
    # Pillow's decoders raise many kinds on damaged bytes (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise InputError(f"The image {name} cannot be decoded; repair or remove it.") from error


def entries(path: Path, inner: str) -> Generator[tuple[Name, bytes | None]]:
    """Walk the folder or tar archive `path` below its folder `inner`: (name, content), content None for a folder.

    Names are only labels, never opened as paths, so `..` or `/` in an archive reaches nothing. Hidden files and those
    that are no image and have no name of a CIFAR batch are left out unread.
    """
    base = _parts(inner)
    walk = _folder(path) if path.is_dir() else _archive(path)
    try:
        for parts, read in walk:
            hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)
            if parts[: len(base)] != base or parts == base or hidden:
                continue
            below = parts[len(base) :]
            if read is None:
                yield below, None
            elif is_image(below[-1]) or is_batch(below[-1]) or is_metadata(below[-1]):
                yield below, read()
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} cannot be read to its end; it is truncated, damaged or not readable.") from error


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_batch(name: str) -> bool:
    """Whether a file name is one of the CIFAR distributions' own."""
    stem = name.removesuffix(".bin")
    known = {"test_batch", "train", "test", "meta", "batches.meta", "batches.meta.txt", "fine_label_names.txt"}
    return stem in known or (stem.startswith("data_batch_") and stem[len("data_batch_") :].isdigit())


def _parts(name: str) -> Name:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _folder(path: Path) -> Iterator[tuple[Name, Callable[[], bytes] | None]]:
    for folder, folders, files in os.walk(path, followlinks=True):
        below, here = Path(folder).relative_to(path).parts, Path(folder).resolve()
        # A link to a folder above would be walked for ever.
        folders[:] = sorted(name for name in folders if (here / name).resolve() not in (here, *here.parents))
        for name in folders:
            yield (*below, name), None
        for name in sorted(files):
            yield (*below, name), partial(_content, Path(folder) / name)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}); repair or remove it.") from error


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header, or none, for the archive's end; here only the closing zero block is."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("damaged or missing header") from error


def _archive(path: Path) -> Iterator[tuple[Name, Callable[[], bytes] | None]]:
    with path.open("rb") as file:
        magic = file.read(6)
    unpack = next((unpack for start, unpack in COMPRESSIONS.items() if magic.startswith(start)), open)
    # Streamed through the decompressors' own modules, which notice a truncation that tarfile's do not; the buffer
    # spares a Python call a header.
    with (
        unpack(path, "rb") as plain,
        io.BufferedReader(plain, 2**20) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as archive,
    ):
        for member in archive:
            if member.isdir():
                yield _parts(member.name), None
            elif member.isfile():
                yield _parts(member.name), partial(_member, archive, member, path)
        # To the end of the file, where the checksums are.
        while stream.read(2**20):
            pass


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise InputError(f"The file {member.name} of {path} is too large to be an image.")
    content = archive.extractfile(member)
    assert content is not None  # only regular files get here
    return content.read()


def read_tree(
    where: str, files: Iterable[tuple[Name, bytes | None]], size: Size | None, channels: int | None, labelled: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decode the image `files` of the set `where` to (images `[N, C, H, W]`, labels `[N]`, class names)."""
    folders: set[Name] = set()
    metadata: dict[Name, bytes] = {}
    decoded: dict[Name, np.ndarray] = {}

    def images() -> Iterator[tuple[Name, bytes]]:
        for name, content in files:
            if content is None:
                folders.add(name)
            elif is_image(name[-1]):
                yield name, content
            elif is_metadata(name[-1]):
                metadata[name] = content

    def decode_entry(entry: tuple[Name, bytes]) -> tuple[Name, np.ndarray]:
        return entry[0], decode(f"{'/'.join(entry[0])} of {where}", entry[1], size, channels)

    # In chunks, so that an archive's compressed files are not all held beside their pixels.
    stream = images()
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(stream, CHUNK)):
            # Threads only get in each other's way while the decoder's share of the work is small.
            large = sum(len(content) for _, content in chunk) > THREADED_BYTES * len(chunk)
            decoded.update((pool.map if large else map)(decode_entry, chunk))
    if not decoded:
        kinds = ", ".join(sorted(SUFFIXES))
        raise InputError(f"No images ({kinds}) were found in {where}; it needs one sub-folder of image files per class.")
    names = sorted(decoded)
    found = labels_from(where, metadata, names) if metadata else None
    labels, class_names = found or classes_of(where, names, folders, labelled)
    return stack([decoded[name] for name in names], where), labels, class_names


def classes_of(where: str, names: list[Name], folders: set[Name], labelled: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels `[N]` and class names from the folder each image lies in; a prefix common to all classes is ignored."""
    parents = sorted({name[:-1] for name in names})
    if not labelled and (parents[0] == () or len(parents) == 1):
        return np.full(len(names), -1, dtype=np.int64), ()
    if parents[0] == ():
        stray = next(name[0] for name in names if len(name) == 1)
        raise InputError(f"The image {stray} of {where} is in no class folder; give each class a sub-folder.")
    above = sorted({parent[:-1] for parent in parents})
    if len(above) > 1 and (inside := next((each for each in parents if each[:-1] in parents), None)):
        raise InputError(f"The folder {'/'.join(inside)} of {where} lies in a class folder; move its images up, or away.")
    if len(above) > 1:
        choices = " or ".join("::" + "/".join(folder) for folder in above if folder)
        raise InputError(f"The class folders of {where} lie in different folders; choose one by adding {choices}.")
    empty = sorted(folder for folder in folders if folder[:-1] == above[0] and folder not in parents)
    if empty:
        raise InputError(f"The class folder {'/'.join(empty[0])} of {where} holds no images; fill or remove it.")
    position = {parent: label for label, parent in enumerate(parents)}
    labels = np.array([position[name[:-1]] for name in names], dtype=np.int64)
    return labels, tuple(parent[-1] for parent in parents)


def stack(images: list[np.ndarray], where: str) -> np.ndarray:
    """One array uint8 `[N, C, H, W]`; a mixture of grayscale and colour becomes RGB, one of sizes is an InputError."""
    if len({image.shape[1:] for image in images}) > 1:
        raise InputError(f"The images of {where} have different sizes; give --image-size to resize them.")
    if len({len(image) for image in images}) > 1:
        images = [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in images]
    return np.stack(images)
