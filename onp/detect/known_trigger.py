"""Banks of a trigger that the user has: as a function, or as images that carry it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onp.data.images import MINIMUM_IMAGES, ImageSet, Splits, joined, split
from onp.detect.bank import triggered_batch
from onp.engine.metrics import predictions
from onp.engine.scoring import TriggeredBatch
from onp.errors import InputError
from onp.model.victim import Victim

KNOWN = "known"  # the family of a known trigger


class TriggerFunction(Protocol):
    """A trigger from clean to triggered images, both float32 `[N, C, H, W]` in [0, 1]."""

    @property
    def name(self) -> str: ...

    @property
    def all_to_all(self) -> bool:
        """Whether every class is led to another one, and not all to one target."""

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class KnownTrigger:
    """The bank of a known trigger. Nothing is inverted, so masks are scored on build and score images.

    Raises:
        InputError: the trigger is all-to-all, and has no single target.
    """

    trigger: TriggerFunction
    target: int
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.trigger.all_to_all:
            raise InputError(
                f"The trigger {self.trigger.name} leads every class to another one, and a repair needs one target class; "
                "leave it out."
            )

    def images(self, clean: Splits) -> Splits:
        return clean

    def scoring_images(self, clean: Splits) -> ImageSet:
        return joined(clean.build, clean.score)

    def batches(self, victim: Victim, images: ImageSet) -> list[TriggeredBatch]:
        return [triggered_batch(victim, images, KNOWN, self.target, self.trigger)]


@dataclass(frozen=True, eq=False)
class KnownTriggeredImages:
    """The bank of images that carry the trigger, split like the clean ones; made by `known_triggered_images`."""

    splits: Splits  #: labels are -1 where the true classes are unknown
    target: int
    weights: tuple[float, ...] = (1.0,)

    def images(self, clean: Splits) -> Splits:
        return self.splits

    def scoring_images(self, clean: Splits) -> ImageSet:
        return joined(self.splits.build, self.splits.score)

    def batches(self, victim: Victim, images: ImageSet) -> list[TriggeredBatch]:
        return [triggered_batch(victim, images, KNOWN, self.target, lambda pixels: pixels)]


def known_triggered_images(victim: Victim, images: ImageSet, seed: int) -> KnownTriggeredImages:
    """The bank of triggered images; the target is the class that the victim predicts for most of them.

    Args:
        victim: the backdoored network.
        images: with the trigger on; their labels are the classes before the attack, or -1.
        seed: of the split.

    Raises:
        InputError: there are too few images, or they lead to no single class.
    """
    if len(images) < MINIMUM_IMAGES:
        raise InputError(f"There are {len(images)} triggered images; give at least {MINIMUM_IMAGES}.")
    predicted: Tensor = predictions(victim.model, victim.normalisation(images.pixels().to(victim.device))).cpu()
    target = int(torch.bincount(predicted, minlength=victim.classes).argmax())
    share = float((predicted == target).float().mean())
    if share < 0.5:
        raise InputError(
            f"Only {100 * share:.0f} % of the triggered images are given one class ({target}); give images whose trigger works."
        )
    others = images.subset(images.labels != target)
    if len(others) < MINIMUM_IMAGES:
        raise InputError(
            f"All but {len(others)} of the triggered images are labelled with the class that they lead to ({target}); label "
            "them with the classes they had before the attack, or put them into one folder without classes."
        )
    return KnownTriggeredImages(split(others, seed), target)
