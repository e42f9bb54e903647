"""Image sets as tables: parquet shards, and the Arrow files that `save_to_disk` of Hugging Face datasets writes."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onp.data.decode import Form, decode, stack
from onp.data.metadata import LABELS, numbered
from onp.errors import InputError
from onp.files import ByteBudget

IMAGES = ("image", "img", "pixel_values")  #: what the column of images may be called, best first
ROWS = 256  # that are unpacked together at most
# "test-00000-of-00002.parquet", with a hash behind it in older sets, or "data-00000-of-00002.arrow"; not "cache-....arrow".
PARTS = re.compile(r"(?:data|(?P<split>\w+?))(-\d+-of-\d+(-[0-9a-f]{16})?)?\.(parquet|arrow)")


def table_files(path: Path) -> list[Path]:
    """The files of a table: `path` itself, or those in the folder; empty where it is no table."""
    if path.is_file():
        return [path] if path.suffix in (".parquet", ".arrow") else []
    folders = (path, path / "data", *(folder for folder in sorted(path.iterdir()) if folder.is_dir()))
    return sorted({file for folder in folders if folder.is_dir() for file in folder.glob("*") if PARTS.fullmatch(file.name)})


def read_table(
    where: str, path: Path, files: list[Path], inner: str, form: Form
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Images uint8 `[N, C, H, W]`, labels int64 `[N]` (None where no image has a class) and class names of the split
    `inner`, which may be left out where there is one.

    Raises InputError for a table that is damaged or has no images in it, and where pyarrow is not installed.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split(path, file), []).append(file)
    choices = " or ".join(f"::{name}" for name in sorted(splits) if name)
    if inner and inner not in splits:
        raise InputError(f"{path} has no split {inner}" + (f"; choose {choices}." if choices else "."))
    if not inner and len(splits) > 1:
        raise InputError(f"The table {path} has several splits; choose one by adding {choices}.")
    arrow = _pyarrow()
    images: list[np.ndarray] = []
    classes: list[Any] = []
    features: dict[str, Any] = {}
    image = label = None
    with ThreadPoolExecutor() as pool:
        for file in splits[inner or next(iter(splits))]:
            try:
                if image is None:
                    schema = _schema(arrow, file)
                    features = _features(schema)
                    image, label = _columns(where, schema.names, features)
                for chosen in _rows(arrow, file, [name for name in (image, label) if name], form.budget):
                    numbers = range(len(images), len(images) + len(chosen[image]))
                    each = partial(_decoded, where, form)
                    images += pool.map(each, numbers, chosen[image])
                    classes += chosen[label] if label else []
            except InputError:
                raise
            except Exception as error:  # of pyarrow, whatever damaged bytes make it raise
                raise InputError(f"{file} cannot be read to its end; it is truncated or damaged.") from error
    if not images:
        raise InputError(f"{where} holds no images.")
    if all(one in (-1, None) for one in classes):
        return stack(images, where), None, ()
    return stack(images, where), *numbered(where, classes, features.get(str(label), {}).get("names") or ())


def _split(path: Path, file: Path) -> str:
    """The split of a shard: its name's start ("test-00000-of-00001.parquet"), or its folder's name ("test/data-...")."""
    match = PARTS.fullmatch(file.name)
    if match and match["split"]:
        return match["split"]
    return file.parent.name if file != path and file.parent not in (path, path / "data") else ""


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise InputError("Parquet and Arrow files need pyarrow; install it with: pip install pyarrow") from error


def _schema(arrow: Any, file: Path) -> Any:
    if file.suffix == ".parquet":
        return _parquet_file(file).schema_arrow
    with arrow.memory_map(str(file)) as source:
        return arrow.ipc.open_stream(source).schema


def _rows(arrow: Any, file: Path, columns: list[str], budget: ByteBudget) -> Iterator[dict[str, list[Any]]]:
    """The cells of some rows at a time, by column.

    Raises:
        InputError: a row group unpacks to more than is left of the budget, which is asked for before it is unpacked.
    """
    if file.suffix != ".parquet":
        with arrow.memory_map(str(file)) as source:
            for batch in arrow.ipc.open_stream(source):
                yield batch.select(columns).to_pydict()
        return
    table = _parquet_file(file)
    for group in range(table.metadata.num_row_groups):
        size = _unpacked(table.metadata.row_group(group), columns)
        ByteBudget(budget.left).take(size, file)  # a new one, since the group is dropped again
        # One stored value may stand in every row, so that a row may be as large as the group.
        rows = max(1, min(ROWS, budget.left // size))
        for batch in table.iter_batches(rows, row_groups=[group], columns=columns):
            yield batch.to_pydict()


def _parquet_file(file: Path) -> Any:
    return importlib.import_module("pyarrow.parquet").ParquetFile(file)


def _unpacked(group: Any, columns: list[str]) -> int:
    """Bytes of the columns of a row group, as the footer of the file has them."""
    parts = (group.column(index) for index in range(group.num_columns))
    return 1 + sum(max(part.total_uncompressed_size, 0) for part in parts if part.path_in_schema.partition(".")[0] in columns)


def _features(schema: Any) -> dict[str, Any]:
    """What datasets notes about the columns, in the metadata of the schema."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _columns(where: str, names: list[str], features: dict[str, Any]) -> tuple[str, str | None]:
    """The columns of the images and of their classes, by the kind that datasets notes or by their names."""

    def column(kind: str, known: tuple[str, ...]) -> str | None:
        noted = [name for name in names if isinstance(features.get(name), dict) and features[name].get("_type") == kind]
        return next((name for name in (*known, *noted[:1]) if name in (noted or names)), None)

    image = column("Image", IMAGES)
    if image is None:
        raise InputError(f"{where} has no column 'image', but {', '.join(names)}.")
    return image, column("ClassLabel", LABELS)


def _decoded(where: str, form: Form, number: int, cell: Any) -> np.ndarray:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise InputError(f"Image {number} of {where} is not in the file itself; save the set with its images embedded.")
    return decode(f"{number} of {where}", content, form)
