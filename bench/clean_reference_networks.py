"""The networks of `bench/clean_reference.py`: data sets, architectures and recipes, trained when they are first asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onp.attack import AttackConfig, train_victim
from onp.attack.triggers import TRIGGERS
from onp.data.images import ImageSet, load_images
from onp.data.normalisation import Normalisation
from onp.model.victim import Victim, load_victim

CLEAN, EVALUATION = 500, 1000  # images: what a user of the defence has; what ACC and the true trigger are measured on
UNLEARNING = {"images": 4096, "batch": 64, "lr": 0.02}
FIRST_SEED = 401


@dataclass(frozen=True)
class Cell:
    """A data set and an architecture: the recipe of its networks."""

    name: str
    data: str  #: "cifar10", "gtsrb" or "fashion"
    arch: str
    norm: str
    attacks: tuple[str, ...]  #: of the backdoored networks
    clean: int  #: networks without a backdoor; the first ones share seeds with the backdoored
    images: int  #: to train on, drawn for each seed
    epochs: int
    flip: bool = False
    pad: int = 2
    lr: float = 0.05
    batch: int = 64


CELLS = (
    Cell(
        *("fashion-vgg", "fashion", "vgg11_bn:width=12,channels=1", "half"),
        *(("badnets", "blended", "wanet", "sig"), 7, 32_000, 1),
    ),
    Cell(
        *("gtsrb-vgg", "gtsrb", "vgg11_bn:width=8,classes=43", "gtsrb"),
        *(("blended", "badnets", "lf", "filter"), 7, 25_087, 2),
    ),
    Cell(
        *("cifar10-vgg", "cifar10", "vgg11_bn:width=12", "cifar10"),
        *(("badnets", "blended", "lf", "filter"), 6, 44_000, 1),
        flip=True,
        pad=4,
    ),
    Cell(
        *("fashion-resnet", "fashion", "preact_resnet18:width=8,channels=1", "fashion-mnist"),
        *(("blended", "badnets", "lf", "wanet"), 6, 24_000, 1),
    ),
)


def recipe() -> dict[str, Any]:
    """All that the rows depend on but the code."""
    cells = [dataclasses.asdict(cell) for cell in CELLS]
    return {"cells": cells, "clean": CLEAN, "evaluation": EVALUATION, "unlearning": UNLEARNING, "first_seed": FIRST_SEED}


def recipe_hash() -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(recipe(), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Rows:
    """`rows.jsonl`: a line a measurement, of its cell, victim and network."""

    path: Path

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has(self, **key: object) -> bool:
        return any(key.items() <= row.items() for row in self.read())

    def add(self, **row: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


@dataclass(frozen=True)
class Places:
    """Folders: the archives, Fashion-MNIST's files, and what this script writes."""

    data: Path
    fashion: Path
    work: Path

    @property
    def rows(self) -> Rows:
        return Rows(self.work / "rows.jsonl")


@cache
def images_of(places: Places, data: str, part: str) -> ImageSet:
    """The training or test images of a data set, decoded once."""
    if data == "fashion":
        return load_images(places.fashion / f"{'train' if part == 'train' else 't10k'}-images-idx3-ubyte.gz")
    kept = places.work / f"{data}-{part}.npz"
    if not kept.exists():
        archive, folder = {"cifar10": ("cifar10-jpeg.tar.xz", ""), "gtsrb": ("gtsrb32-jpeg.tar.xz", "gtsrb32/")}[data]
        images = load_images(f"{places.data / archive}::{folder}{part}")
        np.savez(kept, images=images.images.numpy(), labels=images.labels.numpy(), class_names=np.array(images.class_names))
    return load_images(kept)


def drawn(images: ImageSet, seed: int, first: int, count: int) -> ImageSet:
    """`count` images of a random order, from the `first` one on."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[first : first + count])


@dataclass(frozen=True)
class Lab:
    """One cell's networks and images."""

    places: Places
    cell: Cell

    def test(self, first: int, count: int) -> ImageSet:
        return drawn(images_of(self.places, self.cell.data, "test"), FIRST_SEED, first, count)

    def train(self, seed: int) -> ImageSet:
        return drawn(images_of(self.places, self.cell.data, "train"), seed, 0, self.cell.images)

    def folder(self, attack: str, seed: int) -> Path:
        return self.places.work / "networks" / f"{self.cell.name}-{attack}-{seed}"

    def network(self, attack: str, seed: int) -> Victim:
        """Train it, or read it where it was trained."""
        cell, out = self.cell, self.folder(attack, seed)
        if not (out / "card.json").exists():
            start, train_set = time.monotonic(), self.train(seed)
            target = int(torch.randint(len(train_set.class_names), (1,), generator=torch.Generator().manual_seed(seed)))
            helper = self.folder("none", seed + 1) / "model.safetensors"  # the attacker's own network has other weights
            if needs_network(attack):
                self.network("none", seed + 1)
            config = AttackConfig(
                attack=attack, arch=cell.arch, norm=cell.norm, epochs=cell.epochs, batch_size=cell.batch, lr=cell.lr, seed=seed,
                pad=cell.pad, flip=cell.flip, out=str(out), quiet=True, device="cpu", target=0 if attack == "none" else target,
                clean_model=str(helper) if needs_network(attack) else None,
            )  # fmt: skip
            figures = train_victim(config, train_set, self.test(CLEAN, EVALUATION))
            seconds = round(time.monotonic() - start, 1)
            key = {"cell": cell.name, "kind": "network", "attack": attack, "seed": seed}
            self.places.rows.add(**key, target=target, seconds=seconds, **figures)
        shape = self.test(0, 1).images.shape[1:]
        return load_victim(out / "model.safetensors", cell.arch, Normalisation.parse(cell.norm), shape)


def needs_network(attack: str) -> bool:
    return attack != "none" and TRIGGERS[attack].needs_network
