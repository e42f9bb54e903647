"""Labels of image files in a `metadata.csv` or `metadata.jsonl`, as Hugging Face's imagefolder sets have them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from onp.errors import InputError

FILES = frozenset({"metadata.csv", "metadata.jsonl"})
CLASSES = 1_000_000  #: at most; a larger label is a mistake
LABELS = ("label", "labels", "fine_label", "class", "category")  #: what a column of classes may be called, best first

Name = tuple[str, ...]  # a path inside a folder or archive


def is_metadata(name: str) -> bool:
    return name in FILES


def labels_from(where: str, metadata: dict[Name, bytes], names: Sequence[Name]) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Labels `[N]` and class names of the image files `names`; None where the metadata has no column of classes.

    Each file of metadata names its images by `file_name`, relative to its own folder
    (https://huggingface.co/docs/datasets/image_dataset#imagefolder).
    Raises InputError for metadata that is damaged or lacks an image.
    """
    if len(metadata) > 1:
        choices = " or ".join("::" + "/".join(name[:-1]) for name in sorted(metadata))
        raise InputError(f"There are several files of metadata in {where}; choose a folder by adding {choices}.")
    ((name, content),) = metadata.items()
    file = f"{'/'.join(name)} of {where}"
    rows = _rows(file, name[-1], content)
    column = next((label for label in LABELS if rows and label in rows[0]), None)
    if column is None:
        return None
    try:
        known = {(*name[:-1], *str(row["file_name"]).split("/")): row[column] for row in rows}
    except KeyError as error:
        raise InputError(f"A line of {file} has no {error.args[0]}; each needs file_name and {column}.") from error
    missing = next((image for image in names if image not in known), None)
    if missing is not None:
        raise InputError(f"The image {'/'.join(missing)} is not in {file}; add a line for it or remove it.")
    return numbered(file, [known[image] for image in names])


def numbered(where: str, classes: Sequence[Any], class_names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 `[N]` and class names of `classes`, numbers that count `class_names`, or names themselves.

    Raises:
        InputError: an entry is neither, or a number below 0 or beyond the names.
    """
    try:
        labels = np.array([int(str(one)) for one in classes], dtype=np.int64)
    except OverflowError as error:
        raise InputError(f"{where} has a label of more than 63 bits; its labels must count the classes from 0.") from error
    except ValueError as error:
        if not all(isinstance(one, str) and one for one in classes):
            raise InputError(f"Some images have no class in {where}; give each a number or a name.") from error
        position = {name: label for label, name in enumerate(sorted(set(classes)))}
        return np.array([position[one] for one in classes], dtype=np.int64), tuple(position)
    return labels, check_labels(where, labels, class_names)


def check_labels(where: str, labels: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that integer labels `[N]` count: those given, or numbers.

    Raises:
        InputError: a label is below 0, beyond the names, or not below `CLASSES`.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    count = len(class_names) or min(highest + 1, CLASSES)
    if lowest < 0 or highest >= count:
        counted = f"0 to {count - 1}" if lowest >= 0 else "the classes of the network, counted from 0"
        raise InputError(f"{where} has the label {lowest if lowest < 0 else highest}; its labels must be {counted}.")
    return tuple(class_names) or tuple(map(str, range(count)))


def _rows(file: str, name: str, content: bytes) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text), strict=True))
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{file} cannot be read; it is damaged, or not UTF-8.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} holds something other than an object a line.")
    return rows
