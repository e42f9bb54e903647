"""Image sets as arrays: `.npz` of numpy, and the IDX files of MNIST."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from onp.errors import InputError, first_few
from onp.files import ByteBudget, file_kind

IDX_OF_BYTES = b"\0\0\x08"
IMAGES, LABELS = ("images", "x", "data", "arr_0"), ("labels", "y", "targets", "arr_1")  # capital or small
CLASS_NAMES = "class_names"

Arrays = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]  #: images [N, C, H, W], labels [N], class names


def read_npz(path: Path, labelled: bool, budget: ByteBudget) -> Arrays:
    """Images uint8 `[N, C, H, W]`, labels and class names of an `.npz`.

    Raises:
        InputError: it is damaged, holds no plain arrays of images and labels, or is larger than `budget`.
    """
    arrays, others = _arrays(path, budget)
    images, labels = (next((arrays[key] for key in keys if key in arrays), None) for keys in (IMAGES, LABELS))
    for found, keys in ((images, IMAGES), *(((labels, LABELS),) if labelled else ())):
        if found is None:
            raise InputError(
                f"{path} has no array {' or '.join(map(repr, keys))} but {first_few(sorted({*arrays, *others}), 8) or 'none'}."
            )
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
    return _to_bytes(_channels_first(images, path), path), labels, _names(arrays, path)


def _arrays(path: Path, budget: ByteBudget) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that matter, by their names in small letters, and the names of the others."""
    known = {*IMAGES, *LABELS, CLASS_NAMES}
    arrays: dict[str, np.ndarray] = {}
    others: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy").lower()
                if name not in known:
                    others.append(name)
                    continue
                budget.take(member.file_size, path)
                with archive.open(member) as file:
                    _check_header(file, member.file_size)
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} holds something other than plain arrays; save it with numpy.savez again.") from error
    # Of zipfile, the decompressors, Python's parser and numpy: whatever damaged bytes make them raise.
    except Exception as error:
        raise InputError(f"{path} cannot be read to its end; it is truncated or damaged.") from error
    return arrays, others


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless the array is of numbers or text and has room in the `size` bytes of its member."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "uifUSb" or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("no plain array, or one that is cut off")


def _names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    names = arrays.get(CLASS_NAMES)
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError(f"The class_names of {path} are {names.dtype} {list(names.shape)}; make them a list of texts.")
    try:
        return tuple(str(name) for name in names)
    except Exception as error:  # of numpy, for bytes that are no characters
        raise InputError(f"The class_names of {path} are damaged; save it with numpy.savez again.") from error


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
    if images.dtype.kind not in "uif":
        raise InputError(f"The images of {path} are {images.dtype}; make them uint8, or floats from 0 to 1.")
    # NaN fails both comparisons.
    if images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        return np.rint(images * 255).astype(np.uint8)
    found = f"{images.dtype} from {images.min()} to {images.max()}"
    raise InputError(f"The images of {path} are {found}; make them uint8, or floats from 0 to 1.")


def is_idx(path: Path) -> bool:
    """Whether a file, or its content where it is a gzip file, begins as an IDX file of bytes does."""
    with _open(path) as file:
        return file.read(3) == IDX_OF_BYTES


def read_idx(path: Path, labelled: bool, budget: ByteBudget) -> Arrays:
    """Images uint8 `[N, 1, H, W]` of an IDX file, and the labels of the file beside it.

    Raises:
        InputError: a file is damaged, missing, no set of images, or larger than `budget`.
        OSError, EOFError, zlib.error: it is cut off.
    """
    images = _idx_array(path, budget)
    if images.ndim != 3:
        raise InputError(f"{path} holds no images but a {images.ndim}-d array; give the images file (idx3).")
    found = labels_beside(path)
    if found is None:
        if labelled:
            raise InputError(f"No labels file {_labels_name(path)} lies beside {path}; put it there.")
        return images[:, None], None, ()
    labels = _idx_array(found, budget)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{found} holds {list(labels.shape)} labels for the {len(images)} images of {path.name}.")
    return images[:, None], labels.astype(np.int64), ()


def labels_beside(path: Path) -> Path | None:
    """The labels file that goes with an IDX file of images; None where there is none."""
    name = _labels_name(path)
    names = {name, name.removesuffix(".gz"), name + ".gz"} - {path.name}
    return next((path.with_name(each) for each in sorted(names) if file_kind(path.with_name(each)) == "file"), None)


def _labels_name(path: Path) -> str:
    return path.name.replace("images", "labels").replace("idx3", "idx1")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path)) if gzipped else path.open("rb")


def _idx_array(path: Path, budget: ByteBudget) -> np.ndarray:
    """A uint8 array of the IDX format: two zero bytes, type 8, rank, big-endian sizes, data."""
    with _open(path) as file:
        if file.read(3) != IDX_OF_BYTES:
            raise InputError(f"{path} is no IDX file of bytes; give the pair of images and labels files as published.")
        shape = [int.from_bytes(file.read(4), "big") for _ in range(int.from_bytes(file.read(1), "big"))]
        total = math.prod(shape)
        if not 1 <= len(shape) <= 4 or total == 0:
            raise InputError(f"{path} claims to hold {' x '.join(map(str, shape[:5])) or 'no'} bytes; it is damaged.")
        budget.take(total, path)
        # In pieces, since a damaged header must not make room for what is not there.
        content = bytearray()
        while piece := file.read(min(total - len(content), 2**24)):
            content += piece
    if len(content) != total:
        raise InputError(f"{path} cannot be read to its end; it is truncated or damaged.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
