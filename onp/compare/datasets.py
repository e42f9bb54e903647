"""The images of a table: test sets split into what a defence gets and what is measured on, each under a short name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from onp.compare.config import CompareConfig
from onp.data.fingerprint import fingerprint
from onp.data.images import ImageSet, labelled_as, load_images
from onp.errors import InputError
from onp.files import write_atomically

CLEAN_SEED = 0  # of the choice of clean images, the same for every victim of one data set
LEAST_EVALUATION = 100  # images to measure on


class Datasets:
    """The image sets of one table, read once each; nothing is written before `write`."""

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._read: dict[tuple[str, int | None], ImageSet] = {}
        self._splits: dict[Path, ImageSet] = {}
        self._fingerprints: dict[Path, str] = {}

    def read(self, path: str, channels: int | None = None) -> ImageSet:
        """The images of a path, as `load_images` reads them."""
        if (path, channels) not in self._read:
            self._read[path, channels] = load_images(path, channels=channels)
        return self._read[path, channels]

    def split(self, test_data: str, channels: int, class_names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Split a test set into clean images for the defences, equally many of each class, and others to measure on.

        Args:
            test_data: path of the test set.
            channels: of the victim's images.
            class_names: as the victim counts its classes; the images are labelled so.

        Returns:
            The files of both splits; `write` writes them where they are missing.

        Raises:
            InputError: other images have that short name already, or there are too few images.
        """
        config = self._config
        plain = self.read(test_data, channels)
        images = labelled_as(plain, class_names, f"--test-data {test_data}")
        least = config.clean + LEAST_EVALUATION
        if len(images) < least:
            raise InputError(f"{test_data} holds {len(images)} images; at least {least} are needed for --clean.")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(CLEAN_SEED))
        # By class in turn, so that both splits hold all classes: position within its class first, then at random.
        rank = torch.zeros(len(images), dtype=torch.int64)
        for label in images.labels.unique():
            members = order[images.labels[order] == label]
            rank[members] = torch.arange(len(members))
        order = order[rank[order].argsort(stable=True)]
        name = slug(f"{short_name(test_data)}-{channels}")
        if images.class_names != plain.class_names:  # victims that count classes differently each have their splits
            name += "-" + hashlib.sha256(repr(images.class_names).encode()).hexdigest()[:8]
        clean, evaluation = (self._folder / "data" / name / file for file in ("clean.npz", "eval.npz"))
        self._add(clean, images.subset(order[: config.clean]), test_data)
        self._add(evaluation, images.subset(order[config.clean : config.clean + config.evaluation]), test_data)
        return clean, evaluation

    def training_fingerprint(self, data: str, channels: int) -> str:
        """The fingerprint of a training set; `write` writes it down.

        Raises:
            InputError: this table's victims were trained on other images of that short name.
        """
        path = self._folder / "data" / slug(f"{short_name(data)}-{channels}") / "train.txt"
        now = fingerprint(self.read(data, channels))
        if path.exists() and path.read_text().strip() != now:
            raise InputError(f"{path} is of other images than those of {data}; give --out a new folder.")
        self._fingerprints[path] = now
        return now

    def write(self) -> None:
        """Write what is not there, and drop the images that were read: training sets are large."""
        for path, now in self._fingerprints.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, now + "\n")
        for path, images in self._splits.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, images)
        self._read.clear()

    def _add(self, path: Path, images: ImageSet, test_data: str) -> None:
        if path in self._splits and fingerprint(self._splits[path]) != fingerprint(images):
            raise InputError(f"Two --test-data have the short name '{short_name(test_data)}'; rename one of the files.")
        if path.exists() and fingerprint(load_images(path)) != fingerprint(images):
            raise InputError(f"{path} was split from other images than those of {test_data}; give --out a new folder.")
        self._splits[path] = images


def short_name(path: str) -> str:
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
