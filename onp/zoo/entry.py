"""One network of a zoo on disk: its card, weights, triggers and images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onp.attack.triggers import Trigger, load_trigger
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.victim import Victim, load_victim
from onp.zoo.datasets import drawn, files_of, images_of

SPLITS, CLEAN_IMAGES, TEST_IMAGES = 3, 500, 1_000


def is_classifier(card: dict[str, Any]) -> bool:
    """Whether a network was trained to twice the accuracy of chance; one that was not gives every image the same class."""
    return float(card["acc"]) >= 2 / len(card["training"]["labels"])


@dataclass(frozen=True, eq=False)
class Entry:
    """A network; its card says what it is."""

    folder: Path
    card: dict[str, Any]  #: see `onp.zoo.build.make`

    @property
    def index(self) -> int:
        """Its number in the zoo."""
        return int(self.card["index"])

    @property
    def usable(self) -> bool:
        """Whether the truth about it is clear: a classifier that is clean, or has a backdoor that works."""
        clear = bool(self.card["clean"]) or any(each["works"] for each in self.card["backdoors"])
        return clear and is_classifier(self.card)

    def victim(self) -> Victim:
        """The network, captured."""
        shape = self.test().images.shape[1:]
        norm = Normalisation.parse(self.card["training"]["norm"])
        return load_victim(self.folder / "model.safetensors", self.card["arch"], norm, shape)

    def clean(self, split: int) -> ImageSet:
        """`CLEAN_IMAGES` clean images, which no other split and no measurement of the truth has."""
        return self._images().subset(range(split * CLEAN_IMAGES, (split + 1) * CLEAN_IMAGES))

    def test(self) -> ImageSet:
        """`TEST_IMAGES` others, on which the truth is measured."""
        first = SPLITS * CLEAN_IMAGES
        return self._images().subset(range(first, min(first + TEST_IMAGES, len(self._images()))))

    def triggers(self) -> list[tuple[Trigger, int]]:
        """The true triggers, each with its target."""
        return [
            (load_trigger(self.folder / f"trigger-{number}.safetensors"), int(each["target"]))
            for number, each in enumerate(self.card["backdoors"])
        ]

    def _images(self) -> ImageSet:
        training, files = self.card["training"], files_of(self.card["files"])
        path = files[training["data"]][1] if training["data"] in files else ""
        return test_images(training["data"], training["labels"], path, self.card["seed"])


def test_images(name: str, labels: list[int], path: str, seed: int) -> ImageSet:
    """Images of a network's classes that it was not trained on, in an order of its own."""
    return drawn(images_of(name, "test", labels, path), SPLITS * CLEAN_IMAGES + TEST_IMAGES, seed)


def read_zoo(zoo: str | Path) -> list[Entry]:
    """The networks that are trained, in order.

    Args:
        zoo: folder of the zoo.

    Raises:
        InputError: there is none, or a card is damaged.
    """
    entries = []
    for path in sorted((Path(zoo) / "networks").glob("[0-9]*/card.json")):
        try:
            entries.append(Entry(path.parent, json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged; delete its folder, and the network is trained again.") from error
    if not entries:
        raise InputError(f"There is no network in {zoo}; train some with onp zoo build --out {zoo}.")
    return entries
