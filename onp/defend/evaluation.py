"""What a run is given for measuring only: other images and the attacker's own trigger, which no decision may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet
from onp.engine.metrics import predictions
from onp.model.victim import Victim


@dataclass(frozen=True)
class TrueAttack:
    """The attacker's trigger and its target class."""

    trigger: Trigger
    target: int  #: unused where the trigger is all-to-all

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels int64 `[N]` and triggered pixels float32 `[N, C, H, W]` of `images`."""
        return images.labels, self.trigger(images.pixels())

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The target class of images with these labels."""
        return self.trigger.goals(labels, self.target, classes)


@dataclass(frozen=True, eq=False)
class TrueImages:
    """Images that carry the attacker's trigger, labelled with their own classes."""

    images: ImageSet
    target: int

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels and pixels of the triggered images; `images`, the clean ones, are not used."""
        return self.images.labels, self.images.pixels()

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The one target class."""
        return self.target


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What only the report may see."""

    images: ImageSet | None = None  #: of `--eval-data`; None: the figures are measured on the holdout images
    attack: TrueAttack | TrueImages | None = None


def find_target(victim: Victim, labels: Tensor, triggered: Tensor) -> int:
    """The class that most triggered images of other classes are given.

    Args:
        victim: the network.
        labels: int64 `[N]`.
        triggered: float32 `[N, C, H, W]` in [0, 1].
    """
    predicted = predictions(victim.model, victim.normalisation(triggered.to(victim.device)))
    moved = predicted[predicted != labels.to(predicted.device)]
    return int(torch.bincount(moved, minlength=victim.classes).argmax())
