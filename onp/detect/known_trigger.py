"""Banks of a trigger that the user has: as a function, or as images that carry it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet, Splits, split
from onp.detect.anomaly import LOUDEST
from onp.detect.bank import Part, Surrogate, TriggerBank
from onp.engine.metrics import predictions
from onp.engine.scoring import TriggeredBatch
from onp.errors import InputError
from onp.model.victim import Victim

MINIMUM_IMAGES = 20
JUDGES: tuple[Part, ...] = ("build", "score")  # nothing is fitted: all images that the search may see say what a mask stops


@dataclass(frozen=True)
class GivenImages:
    """Triggered images, split like the clean ones; labels are -1 where the true classes are unknown."""

    parts: Splits
    target: int
    judges: tuple[Part, ...] = JUDGES

    @property
    def weights(self) -> tuple[float, ...]:
        return (1.0,)

    def batches(self, victim: Victim, splits: Splits, part: Part) -> list[TriggeredBatch]:
        images: ImageSet = getattr(self.parts, part)
        pixels, labels = images.pixels().to(victim.device), images.labels.to(victim.device)
        goal = torch.full_like(labels, self.target)
        return [TriggeredBatch("given", victim.normalisation(pixels), labels, goal)]


def given_trigger(trigger: Trigger, target: int) -> TriggerBank:
    """The bank of a known trigger.

    Raises:
        InputError: the trigger is all-to-all, and has no one target.
    """
    if trigger.all_to_all:
        raise InputError(
            f"The trigger {trigger.name} leads every class to another one, and a repair needs one target class; leave it out."
        )
    return TriggerBank((Surrogate("given", target, LOUDEST, 1.0, 1.0, 0.0, None, trigger),), target, JUDGES)


def given_images(victim: Victim, images: ImageSet, seed: int) -> GivenImages:
    """The bank of images that carry the trigger; the target is the class most of them are given.

    Raises:
        InputError: there are too few images, or they lead to no one class.
    """
    if len(images) < MINIMUM_IMAGES:
        raise InputError(f"There are {len(images)} triggered images; give at least {MINIMUM_IMAGES}.")
    guess: Tensor = predictions(victim.model, victim.normalisation(images.pixels().to(victim.device))).cpu()
    target = int(torch.bincount(guess, minlength=victim.classes).argmax())
    share = float((guess == target).float().mean())
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
    return GivenImages(split(others, seed), target)
