"""Figures nobody optimised against: float32, the unmodified network code, images and triggers kept back until now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet
from onp.engine.metrics import Share, accuracy, at_once, attack_success, defence_effectiveness, predictions, robust_accuracy
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim


@dataclass(frozen=True)
class TrueAttack:
    """The real trigger and the class it leads to: for measurement only, no decision may see it."""

    trigger: Trigger
    target: int  #: plays no part where the trigger is all-to-all

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels int64 [N] and triggered pixels float32 [N, C, H, W] of images."""
        return images.labels, self.trigger(images.pixels())

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The class that images of these labels are to be led to."""
        return self.trigger.goals(labels, self.target, classes)


@dataclass(frozen=True, eq=False)
class TrueImages:
    """Images that carry the real trigger, labelled with their own classes: for measurement only."""

    images: ImageSet
    target: int

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels and pixels of the triggered images, whatever the clean ones are."""
        return self.images.labels, self.images.pixels()

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The one target class."""
        return self.target


@dataclass(frozen=True, eq=False)
class Figures:
    """What one network does."""

    acc: Share  #: on the holdout images, or on `--eval-data` where that was given
    asr_surrogate: dict[str, Share]  #: per family, triggers of a fresh bank on the holdout images
    asr: Share | None  #: of the true trigger on the evaluation images, where it was given
    ra: Share | None  #: share of the same images that are given their own class
    asr_clean: Share | None  #: ASR without any trigger: clean images of other classes given the target class all the same
    probabilities: Tensor  #: float32 [N, classes], of the images of the ACC


def figures(
    victim: Victim,
    holdout: ImageSet,
    fresh: list[TriggeredBatch],
    target: int | None,
    evaluation: ImageSet | None,
    attack: TrueAttack | TrueImages | None,
    advance: Callable[[int], None] = lambda _: None,
) -> Figures:
    """Measure `victim`; `fresh` are triggered holdout images, normalised, `target` the class they lead to, if any.

    `advance` counts the images, `images_of` of these.
    """
    measured = holdout if evaluation is None else evaluation
    labels, probabilities = measured.labels, _probabilities(victim, measured, advance)
    clean = probabilities.argmax(1)
    surrogate = {batch.family: _led(victim, batch, advance) for batch in fresh}
    asr = ra = None
    goal: int | Tensor | None = target
    if attack is not None:
        own, triggered = attack.on(measured)
        guess = predictions(victim.model, victim.normalisation(triggered.to(victim.device)), advance)
        own = own.to(guess.device)
        led = attack.goals(own, victim.classes)
        asr, ra = attack_success(own, guess, led), robust_accuracy(own, guess, led)
        goal = attack.goals(labels, victim.classes)
    asr_clean = None if goal is None else attack_success(labels, clean, goal)
    return Figures(accuracy(labels, clean), surrogate, asr, ra, asr_clean, probabilities)


def images_of(
    holdout: ImageSet, fresh: list[TriggeredBatch], evaluation: ImageSet | None, attack: TrueAttack | TrueImages | None
) -> int:
    """How many images `figures` runs through the network."""
    measured = len(holdout if evaluation is None else evaluation)
    triggered = 0 if attack is None else len(attack.images) if isinstance(attack, TrueImages) else measured
    return measured + triggered + sum(int((batch.labels != batch.target).sum()) for batch in fresh)


def find_target(victim: Victim, labels: Tensor, triggered: Tensor) -> int:
    """The class that most triggered pixels float32 [N, C, H, W] of images of other classes, labels int64 [N], are given."""
    guess = predictions(victim.model, victim.normalisation(triggered.to(victim.device)))
    moved = guess[guess != labels.to(guess.device)]
    return int(torch.bincount(moved, minlength=victim.classes).argmax())


def der(before: Figures, after: Figures) -> float | None:
    """Defence effectiveness rating from the true ASR, None without a true trigger."""
    if before.asr is None or after.asr is None:
        return None
    return defence_effectiveness(before.acc.value, after.acc.value, before.asr.value, after.asr.value)


@torch.no_grad()
def _probabilities(victim: Victim, images: ImageSet, advance: Callable[[int], None]) -> Tensor:
    found = []
    for part in images.pixels().split(at_once(images.images, 250)):
        found.append(victim.logits(part).softmax(1).cpu())
        advance(len(part))
    return torch.cat(found)


def _led(victim: Victim, batch: TriggeredBatch, advance: Callable[[int], None]) -> Share:
    """Share of a triggered batch that is given its target, leaving out images of the target class."""
    counted = batch.labels != batch.target
    guess = predictions(victim.model, batch.images[counted], advance)
    return Share(int((guess == batch.target[counted]).sum()), int(counted.sum()))
