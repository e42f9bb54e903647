"""Victims that are in no zoo, as a benchmark of zoo networks takes them: the embedded ones, and folders of `onp attack`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onp.attack.triggers import Trigger, load_trigger
from onp.compare.victims import read_card
from onp.data.images import ImageSet, load_images
from onp.data.normalisation import Normalisation
from onp.defend.demos import DEMOS, demo
from onp.model.victim import Victim, load_victim
from onp.zoo.datasets import drawn
from onp.zoo.recipe import FAMILY_OF

CLEAN, TEST = 500, 1000  # images for the defence, and others that the truth is measured on


@dataclass(frozen=True, eq=False)
class ReadyVictim:
    """What `onp.zoo.entry.Entry` is of a network of a zoo; its only split is number 0."""

    index: str  #: its name
    card: dict[str, Any]  #: as far as a card of the zoo has it
    files: tuple[Path, Path]  #: weights and trigger
    norm: Normalisation
    images: tuple[ImageSet, ImageSet]  #: for the defence, and to measure on

    def victim(self) -> Victim:
        channels, height, width = self.images[0].images.shape[1:]
        return load_victim(self.files[0], self.card["arch"], self.norm, (channels, height, width))

    def clean(self, split: int) -> ImageSet:
        assert split == 0
        return self.images[0]

    def test(self) -> ImageSet:
        return self.images[1]

    def triggers(self) -> list[tuple[Trigger, int]]:
        return [(load_trigger(self.files[1]), int(self.card["backdoors"][0]["target"]))]


def ready_victims(folders: Sequence[str], data: str | None) -> Iterator[ReadyVictim]:
    """The embedded victims, then those of the folders.

    Args:
        folders: written by `onp attack`.
        data: images that those were not trained on.
    """
    for name in DEMOS:
        files = demo(name)
        if files.trigger is not None:
            images = (load_images(str(files.clean)), drawn(load_images(str(files.evaluation)), TEST, 0))
            yield _ready(files.model.parent, f"embedded {name}", images)
    if folders:
        assert data is not None
        every = drawn(load_images(data), CLEAN + TEST, 0)
        images = (every.subset(range(CLEAN)), every.subset(range(CLEAN, len(every))))
        for folder in map(Path, folders):
            yield _ready(folder, folder.name, images)


def _ready(folder: Path, name: str, images: tuple[ImageSet, ImageSet]) -> ReadyVictim:
    found = read_card(folder)
    backdoor = {"family": FAMILY_OF[found["attack"]], "target": found["target"], "works": True}
    card = {"arch": found["arch"], "backdoors": [backdoor], "training": {"data": found["norm"]}}
    files = (folder / "model.safetensors", folder / "trigger.safetensors")
    return ReadyVictim(name, card, files, Normalisation.parse(found["norm"]), images)
