"""What one network of the zoo is trained with, all of it drawn by `onp.zoo.distribution`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FAMILIES = {
    "patch": ("badnets", "badnets_a2a", "trojannn"),
    "blend": ("blended", "adaptive_blend"),
    "smooth": ("lf",),
    "warp": ("wanet",),
    "colour": ("filter", "bpp"),
    "sample_specific": ("ssba", "input_aware"),
    "clean_label": ("sig", "ctrl", "label_consistent"),
}
"""Attacks whose triggers are of one kind: none of a family is seen in learning when one of them is judged."""

FAMILY_OF = {attack: family for family, attacks in FAMILIES.items() for attack in attacks}

WORKS, FAILED = 0.8, 0.2
"""True ASR from which a backdoor works, and below which it does not."""

AFTER = ("none", "bn_statistics", "clean_epochs", "half", "repaired")
"""What may be done to a network after its training."""


@dataclass(frozen=True)
class Training:
    """How a network is trained; drawn alike for clean and backdoored networks."""

    data: str  #: name of the data set
    labels: tuple[int, ...]  #: classes of the data set that the network tells apart
    arch: str  #: name of a built-in network
    width: int
    norm: str
    images: int  #: training images
    epochs: int
    optimiser: str
    lr: float
    batch: int
    weight_decay: float
    smoothing: float
    averaging: float
    pad: int
    flip: bool
    imbalance: float  #: the rarest class has this share of the images of the most frequent one

    def spec(self, channels: int) -> str:
        """As `onp.model.archs.build_network` takes it."""
        return f"{self.arch}:width={self.width},classes={len(self.labels)},channels={channels}"


@dataclass(frozen=True)
class Planted:
    """One backdoor."""

    attack: str
    target: int
    poison_rate: float  #: share of the training images
    strength: float | None  #: amplitude of the trigger; None: as published
    covers: bool = True  #: with the attack's cover images, which carry part of a trigger and keep their label

    @property
    def family(self) -> str:
        """Of the attack."""
        return FAMILY_OF[self.attack]


@dataclass(frozen=True)
class Recipe:
    """One network of the zoo."""

    index: int
    seed: int
    training: Training
    backdoors: tuple[Planted, ...]  #: none, one or two
    after: str  #: one of `AFTER`

    def card(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"backdoors": [asdict(each) | {"family": each.family} for each in self.backdoors]}
