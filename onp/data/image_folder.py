"""Image files of a folder or a tar archive, with a class by folder or by a file of metadata, decoded in memory."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from onp.data.archive import members
from onp.data.decode import Form, decode, stack
from onp.data.metadata import is_metadata, labels_from
from onp.errors import InputError
from onp.files import read_regular

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
MAX_IMAGE_BYTES = 64 * 2**20  #: of an image file or one of metadata
MAX_BATCH_BYTES = 512 * 2**20  #: of a batch of CIFAR; the largest one has 155 MB
CHUNK = 1024  # files
CHUNK_BYTES = 256 * 2**20
THREADED_BYTES = 8192

Name = tuple[str, ...]  # a path inside a folder or archive


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
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
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
    reached: dict[tuple[int, int], Name] = {}
    for folder, folders, files in os.walk(path, followlinks=True):
        below, here = Path(folder).relative_to(path).parts, Path(folder).resolve()
        # A link to a folder above would be walked for ever.
        folders[:] = sorted(name for name in folders if (here / name).resolve() not in (here, *here.parents))
        found = here.stat()
        if (found.st_dev, found.st_ino) in reached:  # links to each other would be walked for ever too
            first = "/".join(reached[found.st_dev, found.st_ino]) or "."
            raise InputError(f"The folders {first} and {'/'.join(below)} of {path} are one, through a link; remove the link.")
        reached[found.st_dev, found.st_ino] = below
        for name in folders:
            yield (*below, name), None
        for name in sorted(files):
            yield (*below, name), partial(read_regular, Path(folder) / name, _limit(name))


def _archive(path: Path) -> Iterator[tuple[Name, Callable[[], bytes] | None]]:
    for name, read in members(path, MAX_BATCH_BYTES):
        yield _parts(name), read


def _limit(name: str) -> int:
    return MAX_BATCH_BYTES if is_batch(name) else MAX_IMAGE_BYTES


def read_tree(
    where: str, files: Iterable[tuple[Name, bytes | None]], form: Form
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
        return entry[0], decode(f"{'/'.join(entry[0])} of {where}", entry[1], form)

    # In chunks, so that an archive's compressed files are not all held beside their pixels.
    stream = images()
    with ThreadPoolExecutor() as pool:
        for chunk in _chunks(stream):
            # Threads only get in each other's way while the decoder's share of the work is small.
            large = sum(len(content) for _, content in chunk) > THREADED_BYTES * len(chunk)
            decoded.update((pool.map if large else map)(decode_entry, chunk))
    if not decoded:
        kinds = ", ".join(sorted(SUFFIXES))
        raise InputError(f"No images ({kinds}) were found in {where}; it needs one sub-folder of image files per class.")
    names = sorted(decoded)
    found = labels_from(where, metadata, names) if metadata else None
    labels, class_names = found or classes_of(where, names, folders, form.labelled)
    return stack([decoded[name] for name in names], where), labels, class_names


def _chunks(stream: Iterable[tuple[Name, bytes]]) -> Iterator[list[tuple[Name, bytes]]]:
    """The files in lists of at most `CHUNK`, and of hardly more than `CHUNK_BYTES`."""
    chunk: list[tuple[Name, bytes]] = []
    room = CHUNK_BYTES
    for name, content in stream:
        chunk.append((name, content))
        room -= len(content)
        if len(chunk) == CHUNK or room <= 0:
            yield chunk
            chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


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
