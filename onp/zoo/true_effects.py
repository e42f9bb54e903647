"""The truth about one network: effects of units, best masks, and several hundred masks with their true ACC and ASR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.model.victim import Victim
from onp.search.features import LEAST_COST
from onp.zoo.best_mask import MOST_EVALUATIONS, BestMask, TrueScoring, best_mask
from onp.zoo.learned_gates import learned_gates
from onp.zoo.mask_choice import NEAR, RANDOM, along, at_random, different, near
from onp.zoo.truth import (
    EFFECT_CLEAN,
    EFFECT_TRIGGERED,
    MEASURED_CLEAN,
    MEASURED_TRIGGERED,
    MOST_UNITS,
    SEARCHED,
    SEARCHED_CLEAN,
    SEARCHED_TRIGGERED,
    TrueBackdoor,
    TrueImages,
    UnitEffects,
    effort,
    trigger_activated_change,
    true_images,
    true_saliency,
    unit_effects,
)


@dataclass(frozen=True, eq=False)
class MaskTruth:
    """What M masks do to images that no mask was searched on; row 0 of the counts is the unpruned network. B backdoors."""

    keep: Tensor  #: bool `[M, V]`
    images: tuple[int, ...]  #: clean ones, then the triggered ones of each backdoor
    target_images: tuple[int, ...]  #: clean images of the target class of each backdoor; all of them where it has none
    acc_count: Tensor  #: int64 `[1 + M]`
    acc_soft: Tensor  #: float32 `[1 + M]`, mean probability of the label
    divergence: Tensor  #: float32 `[1 + M]`, nats
    asr_count: Tensor  #: int64 `[1 + M, B]`
    asr_soft: Tensor  #: float32 `[1 + M, B]`, mean probability of the goal
    target_count: Tensor  #: int64 `[1 + M, B]`: clean images of the target class that are right

    @property
    def acc(self) -> Tensor:
        """Float32 `[1 + M]`."""
        return self.acc_count.float() / self.images[0]

    @property
    def asr(self) -> Tensor:
        """Float32 `[1 + M, B]`."""
        return self.asr_count.float() / torch.tensor(self.images[1:])


@dataclass(frozen=True, eq=False)
class BackdoorTruth:
    """One backdoor."""

    name: str  #: of the attack
    target: int  #: -1 where every class is led to another one
    tac: Tensor  #: float32 `[V]`, trigger-activated change
    best: int | None  #: the best mask, its number among the masks; None where nothing was found
    evaluations: int  #: that its search took


@dataclass(frozen=True, eq=False)
class Truth:
    """All of it."""

    effects: UnitEffects
    act_std: Tensor  #: float32 `[V]`, the unit that trigger-activated changes are counted in
    backdoors: tuple[BackdoorTruth, ...]
    masks: MaskTruth


@dataclass(frozen=True, eq=False)
class TrueCase:
    """A network and what only the zoo has."""

    victim: Victim
    backdoors: tuple[TrueBackdoor, ...]  #: those that work; none for a clean network
    test: ImageSet  #: images that the defence never sees
    validation: ImageSet  #: other clean images


def true_effects(case: TrueCase, orders: Sequence[Tensor], seed: int) -> Truth:
    """Measure it all; the first `SEARCHED` test images serve the search, the others measure the masks.

    Args:
        case: network, backdoors and images.
        orders: of the units, float `[V]`, that masks are to be taken from too.
        seed: of the random masks.
    """
    victim, generator, share = case.victim, torch.Generator().manual_seed(seed), effort(case.victim)
    first = min(SEARCHED, len(case.test) // 2)
    seen, unseen = case.test.subset(range(first)), case.test.subset(range(first, len(case.test)))
    searched = true_images(victim, seen, case.backdoors, SEARCHED_CLEAN, SEARCHED_TRIGGERED)
    attack, acc = _attributions(victim, searched)
    tac, act_std = _changes(victim, searched)
    scaled = tac / act_std.clamp_min(1e-6)
    units = _ranks([acc.abs(), *attack.abs(), *scaled]).argsort(descending=True, stable=True)[: int(share * MOST_UNITS)]
    effects = unit_effects(victim, searched.less(EFFECT_CLEAN, EFFECT_TRIGGERED), units)

    masks = [along(order) for order in (*orders, -acc, torch.rand(victim.units, generator=generator))]
    masks.append(at_random(victim.layers, generator, int(share * RANDOM)))
    validated = true_images(victim, case.validation, (), len(case.validation), 0).evaluator(victim)
    found = list[BestMask]()
    for number in range(len(case.backdoors)):
        alone = searched.alone(number)
        evaluations = int(share * MOST_EVALUATIONS)
        scoring = TrueScoring(alone.evaluator(victim), validated, true_saliency(victim, alone), evaluations)
        cost = acc.clamp_min(0) + LEAST_COST
        by_effect = effects.asr[number].clamp_min(0) / (effects.divergence + LEAST_COST)
        own = (learned_gates(victim, alone), scaled[number] / cost, by_effect)
        found.append(best_mask(scoring, own, generator))
        masks += [along(order) for order in (scaled[number], own[0], attack[number] / cost)]
        masks += [found[-1].path, near(found[-1].keep, generator, int(share * NEAR))]
    if not case.backdoors:
        masks += [near(along(order)[-1], generator, int(share * NEAR / 2)) for order in orders[:2]]
    keep = different(masks)
    facts = tuple(
        BackdoorTruth(each.name, each.target, change, _row_of(keep, best.keep), best.evaluations)
        for each, change, best in zip(case.backdoors, tac, found, strict=True)
    )
    measured = true_images(victim, unseen, case.backdoors, MEASURED_CLEAN, MEASURED_TRIGGERED)
    return Truth(effects, act_std, facts, mask_truth(victim, measured, keep))


def mask_truth(victim: Victim, images: TrueImages, keep: Tensor) -> MaskTruth:
    """ACC, ASR and ACC of the target classes under masks bool `[M, V]`, and without any."""
    everything = torch.ones(1, keep.shape[1], dtype=torch.bool)
    scores = images.evaluator(victim).score(torch.cat((everything, keep)))
    count = [len(batch.labels) for batch in images.of_target]
    return MaskTruth(
        keep=keep,
        images=(len(images.clean.labels), *(len(batch.labels) for batch in images.triggered)),
        target_images=tuple(count),
        acc_count=scores.acc_count,
        acc_soft=scores.acc_soft.float(),
        divergence=scores.divergence.float(),
        asr_count=scores.asr_count,
        asr_soft=scores.asr_soft.float(),
        target_count=(scores.agreement * torch.tensor(count)).round().long(),
    )


def _attributions(victim: Victim, images: TrueImages) -> tuple[Tensor, Tensor]:
    """First-order effects on the ASR of each backdoor `[B, V]` and on ACC `[V]`."""
    everything = torch.ones(victim.units, dtype=torch.bool)
    found = [true_saliency(victim, images.alone(number)).at(everything) for number in range(max(1, len(images.triggered)))]
    return torch.stack([attack for attack, _ in found])[: len(images.triggered)], found[0][1]


def _changes(victim: Victim, images: TrueImages) -> tuple[Tensor, Tensor]:
    """Trigger-activated change `[B, V]`, and the standard deviation of clean activations `[V]`."""
    if not images.triggered:
        some = images.clean.images[:SEARCHED_TRIGGERED]
        return torch.zeros(0, victim.units), trigger_activated_change(victim, some, some)[1]
    pairs = zip(images.plain, images.triggered, strict=True)
    found = [trigger_activated_change(victim, plain.images, triggered.images) for plain, triggered in pairs]
    return torch.stack([change for change, _ in found]), found[0][1]


def _ranks(scores: Sequence[Tensor]) -> Tensor:
    """The best rank of each unit in any of the scores, higher is better, `[V]`."""
    return torch.stack([score.argsort(stable=True).argsort() for score in scores]).amax(0)


def _row_of(masks: Tensor, mask: Tensor) -> int | None:
    return None if mask.all() else int((masks == mask).all(1).nonzero()[0, 0])
