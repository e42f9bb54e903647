"""The figures of a report: float32, unmodified network code, images and triggers that no decision has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet, Splits
from onp.detect.bank import Bank
from onp.engine.metrics import Share, accuracy, at_once, attack_success, defence_effectiveness, predictions, robust_accuracy
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim


@dataclass(frozen=True)
class TrueAttack:
    """The real trigger and its target class: for measurement only, no decision may see it."""

    trigger: Trigger
    target: int  #: unused where the trigger is all-to-all

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels int64 [N] and triggered pixels float32 [N, C, H, W] of `images`."""
        return images.labels, self.trigger(images.pixels())

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The target class of images with these labels."""
        return self.trigger.goals(labels, self.target, classes)


@dataclass(frozen=True, eq=False)
class TrueImages:
    """Images that carry the real trigger, labelled with their own classes: for measurement only."""

    images: ImageSet
    target: int

    def on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Labels and pixels of the triggered images; `images`, the clean ones, are not used."""
        return self.images.labels, self.images.pixels()

    def goals(self, labels: Tensor, classes: int) -> int | Tensor:
        """The one target class."""
        return self.target


@dataclass(frozen=True, eq=False)
class HeldOutTriggers:
    """Triggers for one target class that no decision has seen."""

    bank: Bank
    batches: tuple[TriggeredBatch, ...]  #: of the bank, on the holdout images


@dataclass(frozen=True, eq=False)
class AuditSet:
    """Everything that the figures of one run are measured on."""

    holdout: ImageSet
    triggers: tuple[HeldOutTriggers, ...]  #: one for each class that was to be repaired
    evaluation: ImageSet | None  #: of `--eval-data`; replaces the holdout images where it was given
    attack: TrueAttack | TrueImages | None

    @staticmethod
    def of(
        victim: Victim,
        clean: Splits,
        banks: Sequence[Bank],
        evaluation: ImageSet | None,
        attack: TrueAttack | TrueImages | None,
    ) -> AuditSet:
        """Put the triggers of every bank on the holdout images; with several banks a family is named with its target class."""
        triggers = []
        for bank in banks:
            batches = bank.batches(victim, bank.images(clean).holdout)
            if len(banks) > 1:
                to = f" to {clean.holdout.name(bank.target)}"
                batches = [dataclasses.replace(batch, family=batch.family + to) for batch in batches]
            triggers.append(HeldOutTriggers(bank, tuple(batches)))
        return AuditSet(clean.holdout, tuple(triggers), evaluation, attack)

    @property
    def measured(self) -> ImageSet:
        """The images of the ACC."""
        return self.holdout if self.evaluation is None else self.evaluation

    @property
    def batches(self) -> tuple[TriggeredBatch, ...]:
        """All triggered holdout images."""
        return tuple(batch for triggers in self.triggers for batch in triggers.batches)

    @property
    def target(self) -> int | None:
        """The first class that was to be repaired."""
        return self.triggers[0].bank.target if self.triggers else None

    @property
    def images(self) -> int:
        """How many images `measure_figures` runs through a network."""
        attack = self.attack
        triggered = 0 if attack is None else len(attack.images) if isinstance(attack, TrueImages) else len(self.measured)
        return len(self.measured) + triggered + sum(int((batch.labels != batch.target).sum()) for batch in self.batches)


@dataclass(frozen=True, eq=False)
class Figures:
    """What one network does on an `AuditSet`."""

    acc: Share
    asr_surrogate: dict[str, Share]  #: per family, of the held-out triggers
    asr: Share | None  #: of the true trigger, where it was given
    ra: Share | None  #: share of the same images that are given their own class
    asr_clean: Share | None  #: share of clean images of other classes that are given the target class without any trigger
    probabilities: Tensor  #: float32 [N, classes], of the images of the ACC


@dataclass(frozen=True, eq=False)
class Audit:
    """The figures before and after a repair; one value twice where nothing was repaired."""

    data: AuditSet
    before: Figures
    after: Figures


def audit_repair(victim: Victim, repaired: Victim, data: AuditSet, advance: Callable[[int], None] = lambda _: None) -> Audit:
    """Measure the network before and after its repair.

    Args:
        victim: the network as given.
        repaired: the pruned one, or `victim` itself where nothing was repaired, which is then measured once.
        data: what to measure on.
        advance: called with the number of images done, `data.images` for each network.
    """
    before = measure_figures(victim, data, advance)
    return Audit(data, before, before if repaired is victim else measure_figures(repaired, data, advance))


def measure_figures(victim: Victim, data: AuditSet, advance: Callable[[int], None] = lambda _: None) -> Figures:
    """ACC, surrogate ASR, and with a true trigger ASR and RA of one network; `advance` is called with the images done."""
    labels, probabilities = data.measured.labels, _probabilities(victim, data.measured, advance)
    clean = probabilities.argmax(1)
    surrogate = {batch.family: _surrogate_asr(victim, batch, advance) for batch in data.batches}
    asr = ra = None
    goal: int | Tensor | None = data.target
    if data.attack is not None:
        own, triggered = data.attack.on(data.measured)
        predicted = predictions(victim.model, victim.normalisation(triggered.to(victim.device)), advance)
        own = own.to(predicted.device)
        goals = data.attack.goals(own, victim.classes)
        asr, ra = attack_success(own, predicted, goals), robust_accuracy(own, predicted, goals)
        goal = data.attack.goals(labels, victim.classes)
    asr_clean = None if goal is None else attack_success(labels, clean, goal)
    return Figures(accuracy(labels, clean), surrogate, asr, ra, asr_clean, probabilities)


def find_target(victim: Victim, labels: Tensor, triggered: Tensor) -> int:
    """The class that most triggered pixels float32 [N, C, H, W] of images of other classes, labels int64 [N], are given."""
    predicted = predictions(victim.model, victim.normalisation(triggered.to(victim.device)))
    moved = predicted[predicted != labels.to(predicted.device)]
    return int(torch.bincount(moved, minlength=victim.classes).argmax())


def der(before: Figures, after: Figures) -> float | None:
    """Defence effectiveness rating from the ASR of the true trigger, None without one."""
    if before.asr is None or after.asr is None:
        return None
    return defence_effectiveness(before.acc.value, after.acc.value, before.asr.value, after.asr.value)


@torch.no_grad()
def _probabilities(victim: Victim, images: ImageSet, advance: Callable[[int], None]) -> Tensor:
    parts = []
    for part in images.pixels().split(at_once(images.images, 250)):
        parts.append(victim.logits(part).softmax(1).cpu())
        advance(len(part))
    return torch.cat(parts)


def _surrogate_asr(victim: Victim, batch: TriggeredBatch, advance: Callable[[int], None]) -> Share:
    """Share of a triggered batch that is given its target, leaving out images of the target class."""
    others = batch.labels != batch.target
    predicted = predictions(victim.model, batch.images[others], advance)
    return Share(int((predicted == batch.target[others]).sum()), int(others.sum()))
