"""Small files of numbers: arrays of few bits an entry, as safetensors inside xz.

Nothing in such a file is executed when it is read, and how much it unpacks to is bounded.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from onp.errors import InputError
from onp.files import read_regular, write_atomically

MOST_BYTES, MOST_UNPACKED = 2**20, 2**26  #: of a file that is read, packed and unpacked
FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0},)
DOCUMENT = "document"  # name of the array that holds the JSON

Arrays = dict[str, NDArray[Any]]


def write_packed(path: Path, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write arrays and a JSON document to one file, atomically.

    Args:
        path: of the file.
        document: what is no array; its keys name the format and version.
        arrays: by name, of any type that NumPy and safetensors share.

    Returns:
        The size of the file in bytes.
    """
    text = np.frombuffer(json.dumps(document, separators=(",", ":"), allow_nan=False).encode(), dtype=np.uint8)
    content = save({name: np.ascontiguousarray(array) for name, array in {**arrays, DOCUMENT: text}.items()})
    packed = lzma.compress(content, format=lzma.FORMAT_XZ, filters=FILTERS)
    write_atomically(path, packed)
    return len(packed)


def read_packed(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Read a file of `write_packed`, which may come from anybody.

    Raises:
        InputError: it is no such file, or is larger than any of them.
    """
    content = read_regular(path, MOST_BYTES)
    try:
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=2**28)
        unpacked = unpacker.decompress(content, max_length=MOST_UNPACKED)
        if not unpacker.eof:
            raise ValueError("cut off, or too large")
        arrays = load(unpacked)
        document = json.loads(arrays.pop(DOCUMENT).tobytes())
        if not isinstance(document, dict):
            raise ValueError("no document")
    except (lzma.LZMAError, SafetensorError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}); make it again.") from error
    return document, arrays


def levels(values: Tensor, step: float) -> NDArray[np.int8]:
    """Values of any shape in steps of `step`, int8: half a step off at most, and clipped at 127 steps; nan counts as 0."""
    scaled = (values.detach().double().cpu().nan_to_num(0.0) / step).round().clamp(-127, 127)
    return scaled.to(torch.int8).numpy()


def from_levels(stored: NDArray[np.int8], step: float) -> Tensor:
    """The float32 values of `levels`."""
    return torch.from_numpy(stored.astype(np.float32) * step)


def log_levels(values: Tensor, least: float, most: float) -> NDArray[np.int8]:
    """Values of any sign and shape on a logarithmic scale, int8.

    Their error is about half of `least` near 0 and half a 127th of log(most / least) of the value far from it.

    Args:
        values: float; nan counts as 0.
        least: the size from which the scale is logarithmic.
        most: the largest size; beyond it values are clipped.
    """
    given = values.detach().double().cpu().nan_to_num(0.0)
    scaled = torch.log1p(given.abs() / least) / torch.log1p(torch.tensor(most / least, dtype=torch.float64))
    return (given.sign() * scaled * 127).round().clamp(-127, 127).to(torch.int8).numpy()


def from_log_levels(stored: NDArray[np.int8], least: float, most: float) -> Tensor:
    """The float32 values of `log_levels`."""
    scale = np.log1p(most / least) / 127
    return torch.from_numpy((np.sign(stored) * least * np.expm1(np.abs(stored.astype(np.float64)) * scale)).astype(np.float32))


def bits(masks: Tensor) -> NDArray[np.uint8]:
    """Masks bool `[M, V]` as bits, a row a unit, `[V, ceil(M / 8)]`: masks along an order stand side by side there."""
    return np.packbits(masks.cpu().numpy().T, axis=1)


def from_bits(stored: NDArray[np.uint8], masks: int) -> Tensor:
    """The masks of `bits`, bool `[masks, V]`."""
    return torch.from_numpy(np.unpackbits(stored, axis=1, count=masks).T.astype(bool)).contiguous()
