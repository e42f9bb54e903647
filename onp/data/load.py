"""Which of the formats a path is in, and its images and labels as plain arrays."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onp.data.array_files import Arrays, is_idx, read_idx, read_npz
from onp.data.cifar import read_cifar
from onp.data.decode import Form, fit, stack
from onp.data.image_folder import MAX_BATCH_BYTES, entries, is_batch, read_tree
from onp.data.metadata import check_labels
from onp.data.parquet import read_table, table_files
from onp.errors import InputError
from onp.files import file_kind, read_regular


@dataclass(frozen=True)
class RawImages:
    """uint8 `[N, C, H, W]`, int64 `[N]` (-1 where unlabelled), names by label."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def read(location: str, form: Form) -> RawImages:
    """Read `PATH` or `PATH::FOLDER`, see `onp.data.images.load_images`.

    Raises:
        InputError: it is missing, damaged, unlabelled or of no known format.
    """
    name, _, inner = location.partition("::")
    path = Path(name)
    kind = file_kind(path)
    if kind is None:
        raise InputError(f"There is no file or folder {path}; check the path of the data.")
    if kind == "other":
        raise InputError(f"{path} is a device or pipe; give a file or folder.")
    if files := table_files(path):
        return _finish(location, read_table(location, path, files, inner, form), form)
    if kind == "folder" or re.search(r"\.(tar(\.\w+)?|t[gx]z|tbz2?)$", path.name):
        return _read_tree(location, path, inner, form)
    if inner:
        raise InputError(f"{path} is neither a folder nor a tar archive, so it has no folder {inner}.")
    try:
        if path.suffix == ".npz":
            arrays = read_npz(path, form.labelled, form.budget)
        elif is_idx(path):
            arrays = read_idx(path, form.labelled, form.budget)
        elif is_batch(path.name):
            arrays = read_cifar(location, {path.name: read_regular(path, MAX_BATCH_BYTES)}, "")
        else:
            raise InputError(
                f"{path} is of no known format; give a folder with a sub-folder per class, a tar of one, "
                "an .npz, parquet, an IDX images file or CIFAR batches."
            )
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read to its end; it is truncated or damaged.") from error
    return _finish(location, arrays, form)


def _read_tree(location: str, path: Path, inner: str, form: Form) -> RawImages:
    # CIFAR's own distributions are no tree of images, and `inner` names their part rather than a folder. The first
    # file shows that, so that no archive is read twice.
    everything = entries(path, "")
    first = next((name for name, content in everything if content is not None), None)
    everything.close()
    if first is not None and is_batch(first[-1]):
        batches: dict[str, bytes] = {}
        for name, content in entries(path, ""):
            if content is not None:
                form.budget.take(2 * len(content), f"The set {path}")
                batches[name[-1]] = content
        return _finish(location, read_cifar(location, batches, inner), form)
    if inner and path.is_dir() and not (path / inner).is_dir():
        there = [each.name for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
        raise InputError(f"{path} has no folder {inner}; it has {', '.join(there[:6]) or 'none at all'}.")
    return RawImages(*read_tree(location, entries(path, inner), form))


def _finish(location: str, arrays: Arrays, form: Form) -> RawImages:
    """The arrays with labels and names where they are wanted, and with the images in the wanted form."""
    images, labels, class_names = arrays
    if images.size == 0:
        raise InputError(f"{location} holds no images.")
    if labels is None and form.labelled:
        raise InputError(f"{location} has no labels; the clean data needs one for each image.")
    if labels is None or (not form.labelled and (labels == -1).all()):
        labels, class_names = np.full(len(images), -1, dtype=np.int64), ()
    else:
        class_names = check_labels(location, labels, class_names)
    size, channels = form.size or images.shape[2:], form.channels or images.shape[1]
    if (channels, *size) != images.shape[1:]:
        form.budget.take(2 * len(images) * channels * size[0] * size[1], location)
        squeezed = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        images = stack([fit(Image.fromarray(image), form) for image in squeezed], location)
    return RawImages(np.ascontiguousarray(images), labels.astype(np.int64), class_names)
