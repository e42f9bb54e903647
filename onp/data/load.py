"""The file formats an image set can come in, each read to plain arrays."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from onp.data.cifar import read_cifar
from onp.data.image_folder import MAX_PIXELS, Size, entries, fit, is_batch, read_tree, stack
from onp.data.parquet import read_table, table_files
from onp.errors import InputError

# An array file that claims to hold more is refused before it is read.
MAX_ARRAY_BYTES = 32 * 2**30
NPZ_KEYS = ("images", "x", "data", "arr_0"), ("labels", "y", "targets", "arr_1")  # capital or small
IDX_OF_BYTES = b"\0\0\x08"

Arrays = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]  # images [N, C, H, W], labels [N], class names


@dataclass(frozen=True)
class RawImages:
    """uint8 `[N, C, H, W]`, int64 `[N]` (-1 where unlabelled), names by label."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def read(location: str, size: Size | None, channels: int | None, labelled: bool) -> RawImages:
    """Read `PATH` or `PATH::FOLDER`, see `onp.data.images.load_images`; raises InputError."""
    if channels not in (None, 1, 3):
        raise InputError(f"Images can be converted to 1 or 3 channels, not to {channels}.")
    if size is not None and min(size) < 1:
        raise InputError(f"The image size {size[0]}x{size[1]} must be at least 1x1.")
    if size is not None and math.prod(size) > MAX_PIXELS:
        raise InputError(f"The image size {size[0]}x{size[1]} is more than {MAX_PIXELS} pixels; give that of the network.")
    name, _, inner = location.partition("::")
    path = Path(name)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}; check the path of the data.")
    if files := table_files(path):
        return _finish(location, read_table(location, path, files, inner, size, channels), size, channels, labelled)
    if path.is_dir() or re.search(r"\.(tar(\.\w+)?|t[gx]z|tbz2?)$", path.name):
        return _read_tree(location, path, inner, size, channels, labelled)
    if inner:
        raise InputError(f"{path} is neither a folder nor a tar archive, so it has no folder {inner}.")
    try:
        if path.suffix == ".npz":
            arrays = _read_npz(path, labelled)
        elif _head(path) == IDX_OF_BYTES:
            arrays = _read_idx(path, labelled)
        elif is_batch(path.name):
            arrays = read_cifar(location, {path.name: path.read_bytes()}, "")
        else:
            raise InputError(
                f"{path} is of no known format; give a folder with a sub-folder per class, a tar of one, "
                "an .npz, parquet, an IDX images file or CIFAR batches."
            )
    # zipfile raises RuntimeError for what it does not support, such as encryption.
    except (OSError, EOFError, UnicodeError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{path} cannot be read to its end; it is truncated or damaged.") from error
    return _finish(location, arrays, size, channels, labelled)


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The file, or its content where it is a gzip file."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if gzipped else path.open("rb")


def _head(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(3)


def _read_tree(location: str, path: Path, inner: str, size: Size | None, channels: int | None, labelled: bool) -> RawImages:
    # CIFAR's own distributions are no tree of images, and `inner` names their part rather than a folder. The first
    # file tells them, so that no archive is read twice.
    everything = entries(path, "")
    first = next((name for name, content in everything if content is not None), None)
    everything.close()
    if first is not None and is_batch(first[-1]):
        batches = {name[-1]: content for name, content in entries(path, "") if content is not None}
        return _finish(location, read_cifar(location, batches, inner), size, channels, labelled)
    if inner and path.is_dir() and not (path / inner).is_dir():
        there = [each.name for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
        raise InputError(f"{path} has no folder {inner}; it has {', '.join(there[:6]) or 'none at all'}.")
    return RawImages(*read_tree(location, entries(path, inner), size, channels, labelled))


def _finish(location: str, arrays: Arrays, size: Size | None, channels: int | None, labelled: bool) -> RawImages:
    images, labels, class_names = arrays
    if len(images) == 0:
        raise InputError(f"{location} holds no images.")
    if labels is None and labelled:
        raise InputError(f"{location} has no labels; the clean data needs one for each image.")
    if labels is None or (not labelled and (labels == -1).all()):
        labels, class_names = np.full(len(images), -1, dtype=np.int64), ()
    else:
        class_names = class_names or tuple(str(label) for label in range(labels.max() + 1))
        if labels.min() < 0 or labels.max() >= len(class_names):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            counted = f"0 to {len(class_names) - 1}" if wrong > 0 else "the classes of the network, counted from 0"
            raise InputError(f"{location} has the label {wrong}; its labels must be {counted}.")
    if (size or images.shape[2:]) != images.shape[2:] or (channels or images.shape[1]) != images.shape[1]:
        squeezed = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        images = stack([fit(Image.fromarray(image), size, channels) for image in squeezed], location)
    return RawImages(np.ascontiguousarray(images), labels.astype(np.int64), class_names)


def _read_npz(path: Path, labelled: bool) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_ARRAY_BYTES:
            raise InputError(f"{path} claims to hold more than {MAX_ARRAY_BYTES} bytes; give a smaller set.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key.lower(): array for key, array in file.items() if isinstance(array, np.ndarray)}
    except ValueError as error:
        raise InputError(f"{path} holds something other than plain arrays; save it with numpy.savez again.") from error
    images, labels = (next((arrays[key] for key in keys if key in arrays), None) for keys in NPZ_KEYS)
    for found, keys in ((images, NPZ_KEYS[0]), *(((labels, NPZ_KEYS[1]),) if labelled else ())):
        if found is None:
            raise InputError(f"{path} has no array {' or '.join(map(repr, keys))} but {', '.join(sorted(arrays)) or 'none'}.")
    assert images is not None
    if images.size == 0:
        raise InputError(f"{path} holds no images.")
    if labels is not None and labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(
            f"The labels of {path} are {labels.dtype} {list(labels.shape)}; one integer for each of the "
            f"{len(images)} images is needed."
        )
    names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in arrays else ()
    return _to_bytes(_channels_first(images, path), path), labels, names


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise InputError(f"The images of {path} have the shape {list(images.shape)}; make it [N, H, W, C].")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise InputError(
            f"The shape {list(images.shape)} of the images of {path} does not tell where the channels are; "
            "exactly one of the second and the last number must be 1 or 3."
        )
    return images if first else images.transpose(0, 3, 1, 2)


def _to_bytes(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    # NaN fails both comparisons.
    if images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        return np.rint(images * 255).astype(np.uint8)
    found = f"{images.dtype} from {images.min()} to {images.max()}"
    raise InputError(f"The images of {path} are {found}; make them uint8, or floats from 0 to 1.")


def _read_idx(path: Path, labelled: bool) -> Arrays:
    images = _idx_array(path)
    if images.ndim != 3:
        raise InputError(f"{path} holds no images but a {images.ndim}-d array; give the images file (idx3).")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    names = {beside.name, beside.name.removesuffix(".gz"), beside.name + ".gz"} - {path.name}
    found = next((path.with_name(name) for name in sorted(names) if path.with_name(name).exists()), None)
    if found is None:
        if labelled:
            raise InputError(f"No labels file {beside.name} lies beside {path}; put it there.")
        return images[:, None], None, ()
    labels = _idx_array(found)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{found} holds {list(labels.shape)} labels for the {len(images)} images of {path.name}.")
    return images[:, None], labels.astype(np.int64), ()


def _idx_array(path: Path) -> np.ndarray:
    """A uint8 array of the IDX format: two zero bytes, type 8, rank, big-endian sizes, data."""
    with _open(path) as file:
        if file.read(3) != IDX_OF_BYTES:
            raise InputError(f"{path} is no IDX file of bytes; give the pair of images and labels files as published.")
        shape = [int.from_bytes(file.read(4), "big") for _ in range(int.from_bytes(file.read(1), "big"))]
        if len(shape) > 4 or math.prod(shape) > MAX_ARRAY_BYTES:
            raise InputError(f"{path} claims to hold more than an image set does; it is damaged.")
        # In pieces, since a damaged header must not make room for what is not there.
        content = bytearray()
        while piece := file.read(min(math.prod(shape) - len(content), 2**24)):
            content += piece
    if len(content) != math.prod(shape):
        raise InputError(f"{path} cannot be read to its end; it is truncated or damaged.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
