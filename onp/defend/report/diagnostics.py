"""What the page of a run shows beside its figures: the pruning path, example images, accuracy by class, confidence.

Everything is measured on the images of the audit; no decision sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.defend.evaluation import TrueAttack
from onp.defend.report.audit import Audit, AuditSet, HeldOutTriggers
from onp.detect.known_trigger import KnownTriggeredImages
from onp.engine.evaluator import Evaluator
from onp.engine.metrics import Share
from onp.engine.scoring import TriggeredBatch
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.search.setup import batch_of

PATH_STEPS = 16  # most points of the pruning path
ORDER_IMAGES, PATH_IMAGES = 25, 100  # of each family, that order the path, and that it is measured on
CHANGED_IMAGES = 24  # most changed images that are shown
BINS = 10  # of the confidence histogram


@dataclass(frozen=True)
class PathPoint:
    """What the first `pruned` units of the mask do to the holdout images, in the order of what each removes alone."""

    pruned: int
    added: str  #: the units that this point adds, "layer: 3, 7"; empty for the unpruned network
    acc: float
    asr: float  #: surrogate, weighted as in the banks


@dataclass(frozen=True, eq=False)
class Picture:
    """One image without and with a trigger, uint8 `[C, H, W]`, and the classes that the networks give it."""

    family: str
    clean: Tensor | None  #: None where only triggered images were given
    triggered: Tensor
    label: int  #: -1 where unknown
    before: int  #: class of the triggered image by the original network
    after: int  #: by the repaired one


@dataclass(frozen=True, eq=False)
class ChangedImage:
    """A clean image, uint8 `[C, H, W]`, that the two networks give different classes."""

    image: Tensor
    label: int
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Changes:
    """How the repair changed the answers on clean images."""

    images: tuple[ChangedImage, ...]  #: newly wrong ones first, at most `CHANGED_IMAGES`
    newly_wrong: int
    newly_right: int
    still_wrong: int  #: wrong before and after, with different classes

    @property
    def count(self) -> int:
        return self.newly_wrong + self.newly_right + self.still_wrong


@dataclass(frozen=True)
class Confidence:
    """Highest probability on clean images, of one network."""

    counts: tuple[int, ...]  #: images in `BINS` equal bins from 0 to 1
    mean: float


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """Everything measured for the page."""

    class_names: tuple[str, ...]
    path: tuple[PathPoint, ...]  #: empty where nothing was pruned
    pictures: tuple[Picture, ...]
    per_class: tuple[tuple[Share, Share], ...]  #: accuracy before and after, by class
    changes: Changes
    confidence: tuple[Confidence, Confidence]  #: before and after


def diagnose(victim: Victim, repaired: Victim, mask: Mask, audit: Audit) -> Diagnostics:
    """Compare the network before and after its repair.

    Args:
        victim: the network as given.
        repaired: `victim` pruned by `mask`, or `victim` itself.
        mask: which units were pruned.
        audit: the figures of both networks and the images behind them.
    """
    measured = audit.data.measured
    before, after = (figures.probabilities.argmax(1) for figures in (audit.before, audit.after))
    return Diagnostics(
        class_names=measured.class_names,
        path=_path(victim, mask, audit.data),
        pictures=(
            *(
                picture
                for triggers in audit.data.triggers
                for picture in _surrogate_pictures(victim, repaired, audit.data.holdout, triggers)
            ),
            *_true_trigger_picture(victim, repaired, audit.data),
        ),
        per_class=tuple(_class_accuracy(measured.labels, before, after, k) for k in range(victim.classes)),
        changes=_changes(measured, before, after),
        confidence=(_confidence(audit.before.probabilities), _confidence(audit.after.probabilities)),
    )


def _class_accuracy(labels: Tensor, before: Tensor, after: Tensor, k: int) -> tuple[Share, Share]:
    members = labels == k
    total = int(members.sum())
    return Share(int((before[members] == k).sum()), total), Share(int((after[members] == k).sum()), total)


def _changes(measured: ImageSet, before: Tensor, after: Tensor) -> Changes:
    labels = measured.labels
    differs = (before != after).nonzero()[:, 0]
    wrong = differs[(before == labels)[differs]]
    right = differs[(after == labels)[differs]]
    rest = differs[((before != labels) & (after != labels))[differs]]
    shown = torch.cat((wrong, rest, right))[:CHANGED_IMAGES].tolist()
    images = (ChangedImage(measured.images[i], int(labels[i]), int(before[i]), int(after[i])) for i in shown)
    return Changes(tuple(images), len(wrong), len(right), len(rest))


def _confidence(probabilities: Tensor) -> Confidence:
    highest = probabilities.amax(1)
    bins = (highest * BINS).long().clamp_max(BINS - 1)
    return Confidence(tuple(torch.bincount(bins, minlength=BINS).tolist()), float(highest.mean()))


def _path(victim: Victim, mask: Mask, data: AuditSet) -> tuple[PathPoint, ...]:
    units = (~mask.keep).nonzero()[:, 0]
    if not len(units) or not data.triggers:
        return ()
    clean = batch_of(victim, data.holdout)
    # Every target class has the same share, and within it each family that of its bank.
    shares = [weight / len(data.triggers) for triggers in data.triggers for weight in triggers.bank.weights]
    weights = torch.tensor(shares, dtype=torch.float64)
    parts = list(units.tensor_split(min(PATH_STEPS, len(units))))
    alone = torch.ones(len(parts), victim.units, dtype=torch.bool)
    for row, part in zip(alone, parts, strict=True):
        row[part] = False
    # What a unit removes alone only orders the path; its end, the whole mask, is the same in any order.
    rough = Evaluator(victim, clean, [_thinned(batch, ORDER_IMAGES) for batch in data.batches])
    order = (rough.score(alone).asr_soft @ weights).argsort(stable=True).tolist()
    together = torch.cat((torch.ones(1, victim.units, dtype=torch.bool), alone[order].cumprod(0).bool()))
    scores = Evaluator(victim, clean, [_thinned(batch, PATH_IMAGES) for batch in data.batches]).score(together)
    names = ["", *(_unit_names(mask, parts[index]) for index in order)]
    pruned, asr = (~together).sum(1).tolist(), (scores.asr @ weights).tolist()
    return tuple(PathPoint(*point) for point in zip(pruned, names, scores.acc.tolist(), asr, strict=True))


def _thinned(batch: TriggeredBatch, images: int) -> TriggeredBatch:
    """So many of the images that count, spread evenly, or all of them."""
    counted = (batch.labels != batch.target).nonzero()[:, 0].cpu()
    places = counted[torch.linspace(0, len(counted) - 1, min(images, len(counted))).long()]
    return TriggeredBatch(batch.family, batch.images[places], batch.labels[places], batch.target[places])


def _unit_names(mask: Mask, units: Tensor) -> str:
    keep = torch.ones_like(mask.keep)
    keep[units] = False
    return "; ".join(f"{layer}: {', '.join(map(str, rows))}" for layer, rows in Mask(keep, mask.layers).pruned().items())


@torch.no_grad()
def _surrogate_pictures(victim: Victim, repaired: Victim, holdout: ImageSet, triggers: HeldOutTriggers) -> list[Picture]:
    """For every family an image on which the trigger worked, if possible one on which it no longer does."""
    # Images that were given with a trigger have no clean version.
    bank = triggers.bank
    others = None if isinstance(bank, KnownTriggeredImages) else holdout.subset(holdout.labels != bank.target)
    pictures = []
    for batch in triggers.batches:
        before, after = victim.model(batch.images).argmax(1).cpu(), repaired.model(batch.images).argmax(1).cpu()
        worked = before == batch.target.cpu()
        index = int((worked & (after != batch.target.cpu())).long().argmax() if worked.any() else 0)
        pictures.append(
            Picture(
                family=triggers.name(batch),
                clean=None if others is None else others.images[index],
                triggered=_bytes(_denormalised(victim, batch.images[index])),
                label=int(batch.labels[index]),
                before=int(before[index]),
                after=int(after[index]),
            )
        )
    return pictures


@torch.no_grad()
def _true_trigger_picture(victim: Victim, repaired: Victim, data: AuditSet) -> list[Picture]:
    attack = data.evaluation.attack
    if not isinstance(attack, TrueAttack):
        return []  # triggered images come without their clean versions
    index = int((data.measured.labels != attack.target).long().argmax())
    one = data.measured.subset([index])
    triggered = attack.trigger(one.pixels())
    classes = [int(network.logits(triggered).argmax()) for network in (victim, repaired)]
    return [Picture("true trigger", one.images[0], _bytes(triggered[0]), int(one.labels[0]), *classes)]


def _denormalised(victim: Victim, image: Tensor) -> Tensor:
    mean = torch.tensor(victim.normalisation.mean).view(-1, 1, 1)
    return image.cpu() * torch.tensor(victim.normalisation.std).view(-1, 1, 1) + mean


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).byte()
