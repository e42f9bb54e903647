"""What only a zoo can know of units: how the true trigger changes them, and what their removal does to ACC and ASR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from onp.data.images import ImageSet
from onp.engine.evaluator import Evaluator, Scores
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.interpret import run_graph
from onp.model.layers import Layer
from onp.model.victim import Victim
from onp.search.features import FeatureBatches, Saliency
from onp.search.setup import batch_of

SEARCHED = 300  #: test images that effects are measured and masks searched on, the first ones; all others measure masks
SEARCHED_CLEAN, SEARCHED_TRIGGERED = 240, 60  #: of these, how many clean and with each trigger
EFFECT_CLEAN, EFFECT_TRIGGERED = 100, 60  #: the same for the removal of single units
MEASURED_CLEAN, MEASURED_TRIGGERED = 700, 100  #: of the others
MOST_UNITS = 500  #: whose removal is measured; of a larger network those that matter most
MASKS_AT_ONCE = 64
CHEAP, LEAST_EFFORT = 8.0, 0.4


class TriggerOf(Protocol):
    """A true trigger; see `onp.attack.triggers.Trigger`."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def goals(self, labels: Tensor, target: int, classes: int) -> Tensor:
        """The class that each image is led to."""


@dataclass(frozen=True, eq=False)
class TrueBackdoor:
    """A true trigger and where it leads; `target` is -1 where every class is led to another one."""

    name: str
    trigger: TriggerOf
    target: int


@dataclass(frozen=True, eq=False)
class TrueImages:
    """Clean test images, the same with each trigger, and those of each target class."""

    clean: Batch
    plain: tuple[Batch, ...]  #: per backdoor, the images of `triggered` without the trigger
    triggered: tuple[TriggeredBatch, ...]  #: per backdoor, images that it does not lead to their own class
    of_target: tuple[Batch, ...]  #: per backdoor, clean images of its target class; all where it has none, or no single one

    def less(self, clean: int, triggered: int) -> TrueImages:
        """The first so many of them."""
        return TrueImages(
            Batch(self.clean.images[:clean], self.clean.labels[:clean]),
            tuple(Batch(each.images[:triggered], each.labels[:triggered]) for each in self.plain),
            tuple(
                TriggeredBatch(each.family, each.images[:triggered], each.labels[:triggered], each.target[:triggered])
                for each in self.triggered
            ),
            self.of_target,
        )

    def alone(self, number: int) -> TrueImages:
        """With one backdoor and without the images of its target class."""
        part = slice(number, number + 1)
        return TrueImages(self.clean, self.plain[part], self.triggered[part], ())

    def evaluator(self, victim: Victim) -> Evaluator:
        """Counts ACC, the ASR of each backdoor, and the ACC of the target classes as agreement."""
        return Evaluator(victim, self.clean, self.triggered, self.of_target)


@torch.no_grad()
def true_images(victim: Victim, images: ImageSet, backdoors: Sequence[TrueBackdoor], clean: int, triggered: int) -> TrueImages:
    """Test images as an evaluator takes them.

    Args:
        victim: the network.
        images: test images; clean and triggered ones may be the same.
        backdoors: of the network.
        clean: at most so many.
        triggered: at most so many of each backdoor.
    """
    plain, attacked, of_target = [], [], []
    for number, backdoor in enumerate(backdoors):
        goals = backdoor.trigger.goals(images.labels, backdoor.target, victim.classes)
        chosen = (goals != images.labels).nonzero()[:triggered, 0]
        some = images.subset(chosen)
        pixels = victim.normalisation(backdoor.trigger(some.pixels()).to(victim.device))
        labels = some.labels.to(victim.device)
        attacked.append(TriggeredBatch(f"{number} {backdoor.name}", pixels, labels, goals[chosen].to(victim.device)))
        plain.append(batch_of(victim, some))
        members = images.labels == backdoor.target
        of_target.append(batch_of(victim, images.subset(members if members.any() else members | True)))
    some = images.subset(range(min(clean, len(images))))
    return TrueImages(batch_of(victim, some), tuple(plain), tuple(attacked), tuple(of_target))


@torch.no_grad()
def trigger_activated_change(victim: Victim, plain: Tensor, triggered: Tensor) -> tuple[Tensor, Tensor]:
    """TAC of each unit (Zheng et al. 2022, https://arxiv.org/abs/2208.03111), after the norm and a ReLU.

    Args:
        victim: the network.
        plain: normalised clean images `[N, C, H, W]`.
        triggered: the same with the trigger.

    Returns:
        Both float32 `[V]` on the CPU: the mean over images of the root mean square over positions of the change, and in the
        same unit the standard deviation of the clean activation over images and positions.
    """
    nodes = tuple(dict.fromkeys(layer.mask_nodes[-1] for layer in victim.layers))
    change = torch.zeros(victim.units, dtype=torch.float64)
    moments = torch.zeros(2, victim.units, dtype=torch.float64)
    for x, x_triggered in zip(plain.split(32), triggered.split(32), strict=True):
        values, changed = (run_graph(victim.program, part, _as_it_is, nodes)[1] for part in (x, x_triggered))
        for layer in victim.layers:
            node, units = layer.mask_nodes[-1], slice(layer.offset, layer.offset + layer.units)
            before, after = (_by_position(part[node].relu(), layer) for part in (values, changed))
            change[units] += (after - before).square().mean(2).sqrt().sum(0).double().cpu()
            moments[0, units] += before.mean(2).sum(0).double().cpu()
            moments[1, units] += before.square().mean(2).sum(0).double().cpu()
    mean, square = moments / len(plain)
    return (change / len(plain)).float(), (square - mean.square()).clamp_min(0).sqrt().float()


@dataclass(frozen=True, eq=False)
class UnitEffects:
    """What the removal of each single unit does to the network; B backdoors. On the CPU, 0 where not measured."""

    measured: Tensor  #: bool `[V]`
    acc: Tensor  #: float32 `[V]`, the mean probability of the label that is lost
    divergence: Tensor  #: float32 `[V]`, in nats, on the clean images
    asr: Tensor  #: float32 `[B, V]`, the mean probability of the goal that is lost
    hits: Tensor  #: int32 `[1 + B, V]`: clean images that become wrong, net; triggered ones that are no longer led to the goal
    images: tuple[int, ...]  #: of which: clean ones, then those of each backdoor


def unit_effects(victim: Victim, images: TrueImages, units: Tensor) -> UnitEffects:
    """Remove units, each alone.

    Args:
        victim: the network.
        images: to measure on.
        units: int64, which ones.
    """
    evaluator = Evaluator(victim, images.clean, images.triggered)
    base = evaluator.score(torch.ones(1, victim.units, dtype=torch.bool))
    count = len(images.triggered)
    acc, divergence = torch.zeros(2, victim.units)
    asr, hits = torch.zeros(count, victim.units), torch.zeros(1 + count, victim.units, dtype=torch.int32)
    for some in units.sort().values.split(MASKS_AT_ONCE):
        found = evaluator.score(~torch.nn.functional.one_hot(some, victim.units).bool())
        acc[some] = (base.acc_soft - found.acc_soft).float()
        divergence[some] = (found.divergence - base.divergence).clamp_min(0).float()
        asr[:, some] = (base.asr_soft - found.asr_soft).T.float()
        hits[:, some] = (_hits(base) - _hits(found)).T.int()
    measured = torch.zeros(victim.units, dtype=torch.bool).index_fill(0, units, True)
    triggered = (int((batch.labels != batch.target).sum()) for batch in images.triggered)
    return UnitEffects(measured, acc, divergence, asr, hits, (len(images.clean.labels), *triggered))


def effort(victim: Victim) -> float:
    """How much of the usual number of masks a network gets, 0.4 to 1: less where each one takes long."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        victim.model(torch.zeros(1, *victim.input_shape, device=victim.device))
    # In million multiplications an image; small layers take longer than their multiplications say.
    cost = counter.get_total_flops() / 2e6 + victim.units / 500
    return min(1.0, max(LEAST_EFFORT, CHEAP / cost))


def true_saliency(victim: Victim, images: TrueImages) -> Saliency:
    """First-order effects of units on the ASR of the first backdoor, if any, and on ACC."""
    attacks = images.triggered[:1]
    return Saliency(victim, FeatureBatches.of(images.clean, attacks, (1.0,) * len(attacks)))


def _as_it_is(node: fx.Node, value: Any) -> Any:
    return value


def _by_position(value: Tensor, layer: Layer) -> Tensor:
    """[N, K, positions] of the output of a layer with K units."""
    return (value if layer.kind == "conv" else value.movedim(-1, 1)).reshape(len(value), layer.units, -1)


def _hits(scores: Scores) -> Tensor:
    return torch.cat((scores.acc_count[:, None], scores.asr_count), 1)
