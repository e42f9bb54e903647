"""The images of a table: test sets cut into what a defence gets and what is measured on, each under its short name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from onp.compare.config import CompareConfig
from onp.data.digest import digest
from onp.data.fingerprint import labelled_as
from onp.data.images import ImageSet, load_images
from onp.errors import InputError
from onp.files import write_atomically

CLEAN_SEED = 0  # of the choice of clean images, the same for every victim of one data set


class Cuts:
    """The image sets of one call, read once each; nothing is written before `write`."""

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._read: dict[tuple[str, int | None], ImageSet] = {}
        self._new: dict[Path, ImageSet] = {}
        self._digests: dict[Path, str] = {}

    def read(self, path: str, channels: int | None = None) -> ImageSet:
        """The images of a path, as `load_images` reads them."""
        if (path, channels) not in self._read:
            self._read[path, channels] = load_images(path, channels=channels)
        return self._read[path, channels]

    def cut(self, test_data: str, channels: int, class_names: Sequence[str] = ()) -> tuple[Path, Path]:
        """The files of `clean` images, equally many of each class, and of others to measure on, labelled as a victim of
        `class_names` does; where they are missing, `write` writes them.

        Raises InputError where other images have that short name already, and for too few images.
        """
        config = self._config
        plain = self.read(test_data, channels)
        images = labelled_as(plain, class_names, f"--test-data {test_data}")
        if len(images) < config.clean + 100:
            raise InputError(f"{test_data} holds {len(images)} images; at least {config.clean + 100} are needed for --clean.")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(CLEAN_SEED))
        # By class in turn, so that both parts hold all classes: position within its class first, then at random.
        rank = torch.zeros(len(images), dtype=torch.int64)
        for label in images.labels.unique():
            members = order[images.labels[order] == label]
            rank[members] = torch.arange(len(members))
        order = order[rank[order].argsort(stable=True)]
        name = slug(f"{short(test_data)}-{channels}")
        if images.class_names != plain.class_names:  # victims that count classes differently each have their cut
            name += "-" + hashlib.sha256(repr(images.class_names).encode()).hexdigest()[:8]
        clean, evaluation = (self._folder / "data" / name / file for file in ("clean.npz", "eval.npz"))
        self._add(clean, images.subset(order[: config.clean]), test_data)
        self._add(evaluation, images.subset(order[config.clean : config.clean + config.evaluation]), test_data)
        return clean, evaluation

    def training(self, data: str, channels: int) -> str:
        """The digest of a training set; `write` keeps it.

        Raises InputError where this table's victims were trained on other images of that short name.
        """
        path = self._folder / "data" / slug(f"{short(data)}-{channels}") / "train.txt"
        found = digest(self.read(data, channels))
        if path.exists() and path.read_text().strip() != found:
            raise InputError(f"{path} is of other images than those of {data}; give --out a new folder.")
        self._digests[path] = found
        return found

    def _add(self, path: Path, images: ImageSet, test_data: str) -> None:
        if path in self._new and digest(self._new[path]) != digest(images):
            raise InputError(f"Two --test-data have the short name '{short(test_data)}'; rename one of the files.")
        if path.exists() and digest(load_images(path)) != digest(images):
            raise InputError(f"{path} was cut from other images than those of {test_data}; give --out a new folder.")
        self._new[path] = images

    def write(self) -> None:
        """Write what is not there."""
        for path, found in self._digests.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, found + "\n")
        for path, images in self._new.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, images)
        self._read.clear()  # training sets, too, are large


def short(path: str) -> str:
    """A short name of a data set: the file's or folder's name without endings."""
    return slug(Path(path.partition("::")[0]).name.partition(".")[0])


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def _write(path: Path, images: ImageSet) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images.images.numpy(),
        labels=images.labels.numpy(),
        class_names=np.array(images.class_names, dtype=np.str_),
    )
    write_atomically(path, buffer.getvalue())
