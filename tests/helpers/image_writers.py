"""Images and the files they come in, for tests."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes | None], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, members: dict[str, bytes | None]) -> Path:
    for name, content in members.items():
        file = path / name
        if content is None:
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return path


def class_members(rng: np.random.Generator, prefix: str = "") -> tuple[dict[str, bytes | None], np.ndarray]:
    """Three images of two classes, written out of order, and the pixels [N, C, H, W] in the order expected."""
    array = pixels(rng, 3, 5, 7, 3)
    names = [f"{prefix}ant/a.png", f"{prefix}ant/b.PNG", f"{prefix}bee/a.png"]
    members: dict[str, bytes | None] = {names[i]: png(array[i]) for i in (2, 1, 0)}
    return members, array.transpose(0, 3, 1, 2)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
