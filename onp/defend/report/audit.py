"""The figures of a report: float32, unmodified network code, images and triggers that no search has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits
from onp.defend.evaluation import Evaluation
from onp.detect.bank import Bank
from onp.engine.metrics import Advance, Share, batches_of, defence_effectiveness, measure, measure_attack
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim


def no_progress(images: int) -> None:
    """An `Advance` that shows nothing."""


@dataclass(frozen=True, eq=False)
class HeldOutTriggers:
    """Triggers for one target class that neither detection nor search has seen."""

    bank: Bank
    batches: tuple[TriggeredBatch, ...]  #: of the bank, on the holdout images
    class_name: str | None = None  #: of the target; None where there is one target class only

    def name(self, batch: TriggeredBatch) -> str:
        """What a report calls a batch: its family, and its target class where there are several."""
        return batch.family if self.class_name is None else f"{batch.family} to {self.class_name}"


@dataclass(frozen=True, eq=False)
class AuditSet:
    """Everything that the figures of one run are measured on."""

    holdout: ImageSet
    triggers: tuple[HeldOutTriggers, ...]  #: one for each target class
    evaluation: Evaluation  #: its images replace the holdout images where they were given

    @staticmethod
    def of(victim: Victim, clean: Splits, banks: Sequence[Bank], evaluation: Evaluation) -> AuditSet:
        """Put the triggers of every bank on the holdout images."""
        triggers = []
        for bank in banks:
            batches = bank.batches(victim, bank.images(clean).holdout)
            class_name = clean.holdout.name(bank.target) if len(banks) > 1 else None
            triggers.append(HeldOutTriggers(bank, tuple(batches), class_name))
        return AuditSet(clean.holdout, tuple(triggers), evaluation)

    @property
    def measured(self) -> ImageSet:
        """The images of the ACC."""
        return self.holdout if self.evaluation.images is None else self.evaluation.images

    @property
    def batches(self) -> tuple[TriggeredBatch, ...]:
        """All triggered holdout images."""
        return tuple(batch for triggers in self.triggers for batch in triggers.batches)

    @property
    def named(self) -> dict[str, TriggeredBatch]:
        """The triggered holdout images by the name of their triggers."""
        return {triggers.name(batch): batch for triggers in self.triggers for batch in triggers.batches}

    @property
    def families(self) -> dict[str, str]:
        """The trigger family by the name of the triggers."""
        return {name: batch.family for name, batch in self.named.items()}

    @property
    def images(self) -> int:
        """How many images `measure_figures` measures a network on."""
        attack = self.evaluation.attack
        triggered = 0 if attack is None else len(attack.on(self.measured)[0])
        return len(self.measured) + triggered + sum(len(batch.labels) for batch in self.batches)

    def goals(self, classes: int) -> int | Tensor | None:
        """The target class of the true trigger, or else of the first held-out one, for the images of the ACC."""
        if self.evaluation.attack is not None:
            return self.evaluation.attack.goals(self.measured.labels, classes)
        return self.triggers[0].bank.target if self.triggers else None

    def attacked(self, victim: Victim) -> list[TriggeredBatch]:
        """The images with the true trigger, normalised; empty where it was not given."""
        attack = self.evaluation.attack
        if attack is None:
            return []
        labels, pixels = attack.on(self.measured)
        target = torch.as_tensor(attack.goals(labels, victim.classes)).expand_as(labels)
        return [TriggeredBatch("true", victim.normalisation(pixels.to(victim.device)), labels, target)]


@dataclass(frozen=True, eq=False)
class Figures:
    """What one network does on an `AuditSet`."""

    acc: Share
    asr_surrogate: dict[str, Share]  #: of the held-out triggers, by their name in `AuditSet.named`
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


def audit_repair(victim: Victim, repaired: Victim, data: AuditSet, advance: Advance = no_progress) -> Audit:
    """Measure the network before and after its repair.

    Args:
        victim: the network as given.
        repaired: the pruned one, or `victim` itself where nothing was repaired, which is then measured once.
        data: what to measure on.
        advance: called with the number of images done, `data.images` for each network.
    """
    before = measure_figures(victim, data, advance)
    return Audit(data, before, before if repaired is victim else measure_figures(repaired, data, advance))


def measure_figures(victim: Victim, data: AuditSet, advance: Advance = no_progress) -> Figures:
    """ACC, surrogate ASR, and with a true trigger ASR and RA of one network; `advance` is called with the images done."""
    clean = batches_of(data.measured, victim.normalisation, victim.device)
    measured = measure(victim.model, clean, data.goals(victim.classes), data.attacked(victim), advance)
    surrogate = {name: measure_attack(victim.model, [batch], advance)[0] for name, batch in data.named.items()}
    return Figures(
        acc=measured.acc,
        asr_surrogate={name: share for name, share in surrogate.items() if share is not None},
        asr=measured.asr,
        ra=measured.ra,
        asr_clean=measured.asr_clean,
        probabilities=measured.probabilities,
    )


def der(before: Figures, after: Figures) -> float | None:
    """Defence effectiveness rating from the ASR of the true trigger, None without one."""
    if before.asr is None or after.asr is None:
        return None
    return defence_effectiveness(before.acc.value, after.acc.value, before.asr.value, after.asr.value)
