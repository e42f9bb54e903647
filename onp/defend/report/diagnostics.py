"""What the page of a run shows beyond its figures: pictures of the triggers, the path, the classes, the images, the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.defend.report.audit import Figures, TrueAttack, TrueImages
from onp.detect.bank import Bank, TriggerBank
from onp.engine.evaluator import Evaluator
from onp.engine.metrics import Share
from onp.engine.scoring import TriggeredBatch
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.search.neuron_graph import build_graph
from onp.search.setup import batch_of

STEPS = 32  # most points of the path
CHANGED = 24  # most changed images that are shown
DRAWN = 48  # most pruned units in the picture of the graph
NEIGHBOURS = 4  # strongest edges drawn for each of them
BINS = 10


@dataclass(frozen=True, eq=False)
class Audit:
    """Triggers that nothing was decided by, for one target class."""

    bank: Bank
    batches: list[TriggeredBatch]  #: of the bank, on the holdout images


@dataclass(frozen=True)
class Point:
    """The holdout images after the first `pruned` units of the mask, taken in the order of what each removes alone."""

    pruned: int
    last: str  #: the units that this point adds, "layer: 3, 7"; empty for the unpruned network
    acc: float
    asr: float  #: surrogate, weighted as in the banks


@dataclass(frozen=True, eq=False)
class Picture:
    """One image without and with a trigger: uint8 `[C, H, W]`, and the classes that the network gives them."""

    family: str
    clean: Tensor | None  #: None where only triggered images were given
    triggered: Tensor
    label: int  #: -1 where unknown
    before: int  #: class of the triggered image by the original network
    after: int  #: by the repaired one


@dataclass(frozen=True, eq=False)
class Changed:
    """A clean image, uint8 `[C, H, W]`, that the two networks disagree on."""

    image: Tensor
    label: int
    before: int
    after: int


@dataclass(frozen=True)
class Node:
    """A unit in the picture of the graph."""

    layer: int
    unit: int
    pruned: bool


@dataclass(frozen=True, eq=False)
class Details:
    """Everything measured for the page; no decision sees it."""

    class_names: tuple[str, ...]
    path: tuple[Point, ...]
    pictures: tuple[Picture, ...]
    per_class: tuple[tuple[Share, Share], ...]  #: accuracy before and after, by class
    changed: tuple[Changed, ...]  #: newly wrong ones first, at most `CHANGED`
    newly_wrong: int
    newly_right: int
    otherwise_changed: int  #: wrong before and after, in another way
    confidence: tuple[tuple[int, ...], tuple[int, ...]]  #: clean images by highest probability, `BINS` bins, before and after
    mean_confidence: tuple[float, float]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int, float], ...]  #: positions in `nodes`, weight in the neuron graph


def details(
    victim: Victim,
    repaired: Victim,
    mask: Mask,
    holdout: ImageSet,
    audits: Sequence[Audit],
    evaluation: ImageSet | None,
    attack: TrueAttack | TrueImages | None,
    figures: tuple[Figures, Figures],
) -> Details:
    """Compare both networks on the images of the report's ACC; `figures` are those before and after."""
    measured = holdout if evaluation is None else evaluation
    labels = measured.labels
    old, new = (each.probabilities for each in figures)
    before, after = old.argmax(1), new.argmax(1)
    differs = (before != after).nonzero()[:, 0]
    wrong = differs[(before == labels)[differs]]
    right = differs[(after == labels)[differs]]
    rest = differs[((before != labels) & (after != labels))[differs]]
    shown = torch.cat((wrong, rest, right))[:CHANGED].tolist()
    per_class = []
    for k in range(victim.classes):
        members = labels == k
        total = int(members.sum())
        per_class.append((Share(int((before[members] == k).sum()), total), Share(int((after[members] == k).sum()), total)))
    nodes, edges = _drawn(victim, mask)
    return Details(
        class_names=measured.class_names,
        path=_path(victim, mask, holdout, audits),
        pictures=(
            *(picture for audit in audits for picture in _surrogates(victim, repaired, holdout, audit)),
            *_true(victim, repaired, measured, attack),
        ),
        per_class=tuple(per_class),
        changed=tuple(Changed(measured.images[i], int(labels[i]), int(before[i]), int(after[i])) for i in shown),
        newly_wrong=len(wrong),
        newly_right=len(right),
        otherwise_changed=len(rest),
        confidence=(_histogram(old), _histogram(new)),
        mean_confidence=(float(old.amax(1).mean()), float(new.amax(1).mean())),
        nodes=nodes,
        edges=edges,
    )


def _histogram(probabilities: Tensor) -> tuple[int, ...]:
    bins = (probabilities.amax(1) * BINS).long().clamp_max(BINS - 1)
    return tuple(torch.bincount(bins, minlength=BINS).tolist())


def _path(victim: Victim, mask: Mask, holdout: ImageSet, audits: Sequence[Audit]) -> tuple[Point, ...]:
    units = (~mask.keep).nonzero()[:, 0]
    if not len(units) or not audits:
        return ()
    evaluator = Evaluator(victim, batch_of(victim, holdout), [batch for audit in audits for batch in audit.batches])
    # Each class counts alike, and within it each family as in its bank.
    shares = [weight / len(audits) for audit in audits for weight in audit.bank.weights]
    weights = torch.tensor(shares, dtype=torch.float64)
    parts = list(units.tensor_split(min(STEPS, len(units))))
    alone = torch.ones(len(parts), victim.units, dtype=torch.bool)
    for row, part in zip(alone, parts, strict=True):
        row[part] = False
    # What a unit removes alone says which come first; the pruned set is the same in the end.
    order = (evaluator.score(alone).asr_soft @ weights).argsort(stable=True).tolist()
    together = torch.cat((torch.ones(1, victim.units, dtype=torch.bool), alone[order].cumprod(0).bool()))
    scores = evaluator.score(together)
    names = ["", *(_named(mask, parts[index]) for index in order)]
    pruned, asr = (~together).sum(1).tolist(), (scores.asr @ weights).tolist()
    return tuple(Point(*point) for point in zip(pruned, names, scores.acc.tolist(), asr, strict=True))


def _named(mask: Mask, units: Tensor) -> str:
    keep = torch.ones_like(mask.keep)
    keep[units] = False
    return "; ".join(f"{layer}: {', '.join(map(str, rows))}" for layer, rows in Mask(keep, mask.layers).pruned().items())


@torch.no_grad()
def _surrogates(victim: Victim, repaired: Victim, holdout: ImageSet, audit: Audit) -> list[Picture]:
    """For every family the first holdout image that the trigger leads to the target."""
    # Of images that were given with a trigger there is no clean version.
    bank = audit.bank
    others = holdout.subset(holdout.labels != bank.target) if isinstance(bank, TriggerBank) else None
    pictures = []
    for batch in audit.batches:
        before, after = victim.model(batch.images).argmax(1).cpu(), repaired.model(batch.images).argmax(1).cpu()
        led = before == batch.target.cpu()
        index = int((led & (after != batch.target.cpu())).long().argmax() if led.any() else 0)
        pictures.append(
            Picture(
                family=batch.family,
                clean=None if others is None else others.images[index],
                triggered=_bytes(_denormalised(victim, batch.images[index])),
                label=int(batch.labels[index]),
                before=int(before[index]),
                after=int(after[index]),
            )
        )
    return pictures


@torch.no_grad()
def _true(victim: Victim, repaired: Victim, measured: ImageSet, attack: TrueAttack | TrueImages | None) -> list[Picture]:
    if not isinstance(attack, TrueAttack):
        return []  # triggered images come without their clean selves
    index = int((measured.labels != attack.target).long().argmax())
    one = measured.subset([index])
    triggered = attack.trigger(one.pixels())
    classes = [int(each.logits(triggered).argmax()) for each in (victim, repaired)]
    return [Picture("true trigger", one.images[0], _bytes(triggered[0]), int(one.labels[0]), *classes)]


def _denormalised(victim: Victim, image: Tensor) -> Tensor:
    mean = torch.tensor(victim.normalisation.mean).view(-1, 1, 1)
    return image.cpu() * torch.tensor(victim.normalisation.std).view(-1, 1, 1) + mean


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).byte()


def _drawn(victim: Victim, mask: Mask) -> tuple[tuple[Node, ...], tuple[tuple[int, int, float], ...]]:
    """The pruned units and the neighbours each is tied to most, as the policy saw them."""
    pruned = (~mask.keep).nonzero()[:DRAWN, 0].tolist()
    if not pruned:
        return (), ()
    graph = build_graph(victim)
    found: dict[tuple[int, int], float] = {}
    for unit in pruned:
        row = slice(int(graph.indptr[unit]), int(graph.indptr[unit + 1]))
        strongest = graph.weight[row].argsort(descending=True)[:NEIGHBOURS]
        for other, weight in zip(graph.indices[row][strongest].tolist(), graph.weight[row][strongest].tolist(), strict=True):
            pair = (min(unit, other), max(unit, other))
            found[pair] = max(weight, found.get(pair, 0.0))
    units = sorted({*pruned, *(unit for pair in found for unit in pair)})
    layer_of, place = graph.layer.tolist(), {unit: index for index, unit in enumerate(units)}
    nodes = [Node(layer_of[u], u - victim.layers[layer_of[u]].offset, not bool(mask.keep[u])) for u in units]
    return tuple(nodes), tuple((place[a], place[b], weight) for (a, b), weight in found.items())
