"""The bank: surrogate triggers found on clean images, the class they point at, and how far each may be believed.

Families are fitted for every class at once, to minimal cost; a family speaks for a class as loudly as that class is
anomalously cheap in it (its *evidence*), because a strong enough trigger leads anywhere and success alone says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits
from onp.detect.anomaly import DRIFT, LATENT, MEMORY, MIX, Scan, efforts, loudness
from onp.detect.bn_match import Recall
from onp.detect.bn_statistics import class_mix, pulls, remember
from onp.detect.detectors import drift, latent_distances
from onp.detect.inversion import Fit, FitConfig, fit, success_rate
from onp.detect.pgd import adversarial_reach, adversarial_size, targeted_examples
from onp.detect.trigger_families import FAMILIES
from onp.engine.differentiable import Logits, fitting_logits
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim

Part = Literal["build", "score", "holdout"]
ADVERSARIAL = "adversarial"
FAMILY_NAMES = (*(family.name for family in FAMILIES), ADVERSARIAL)
WORTHWHILE = 0.15  # share of the loudest family's weight
GENERAL = ("patch", "blend")  # what any fixed trigger looks like from near or far
REMEMBERED = 3.0  # weight of a family whose triggers do exactly what the norms remember, where that is sure
STRONGEST = 8.0  # most that a fitted trigger is amplified


@dataclass(frozen=True)
class BankConfig:
    """How the bank is built."""

    scan: FitConfig = FitConfig(steps=50, images=12)  #: every class, to find the suspect
    refine: FitConfig = FitConfig(steps=60, images=16, keep=0.97)  #: the suspect alone, several starts
    starts: int = 4  #: triggers a family keeps for the suspect; a mask that stops one alone is easily found
    minimum_success: float = 0.6  #: on unseen images, or the trigger is dropped
    threshold: float = 4.0  #: suspicion from which a class counts as a backdoor's target


@dataclass(frozen=True)
class Surrogate:
    """Triggers of one family for one class; image i gets trigger i modulo their number."""

    family: str
    target: int
    evidence: float  #: how anomalously cheap the class is in this family; see `evidence`
    weight: float  #: share in the bank's ASR; the weights of a bank sum to 1
    success: float  #: share of unseen images of other classes led to the target
    cost: float  #: of the cheapest trigger, in the family's unit
    match: float | None  #: cosine of what its triggers change and what the norms remember; None where those say nothing
    apply: Callable[[Tensor], Tensor]  #: float32 images `[N, C, H, W]` in [0, 1] to triggered images


class Bank(Protocol):
    """Triggers for one target class, put on the images of a split."""

    @property
    def target(self) -> int: ...

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the weighted ASR; they sum to 1."""

    @property
    def judges(self) -> tuple[Part, ...]:
        """The parts a mask is judged on: those that no trigger was fitted on."""

    def batches(self, victim: Victim, splits: Splits, part: Part) -> list[TriggeredBatch]:
        """The images of `part` that are not of the target class, triggered and normalised, one batch a family."""


@dataclass(frozen=True)
class TriggerBank:
    """Surrogate triggers, image -> image."""

    surrogates: tuple[Surrogate, ...]
    target: int
    judges: tuple[Part, ...] = ("score",)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(surrogate.weight for surrogate in self.surrogates)

    def batches(self, victim: Victim, splits: Splits, part: Part) -> list[TriggeredBatch]:
        images: ImageSet = getattr(splits, part)
        others = images.subset(images.labels != self.target)
        pixels, labels = others.pixels().to(victim.device), others.labels.to(victim.device)
        goal = torch.full_like(labels, self.target)
        return [
            TriggeredBatch(surrogate.family, victim.normalisation(surrogate.apply(pixels)).detach(), labels, goal)
            for surrogate in self.surrogates
        ]


def scan(
    victim: Victim,
    build: ImageSet,
    score: ImageSet,
    seed: int,
    config: BankConfig,
    tick: Callable[..., None] = lambda *_, **__: None,
) -> Scan:
    """Ask every witness about every class; sees clean images only.

    `tick` counts `scan_steps(config)` steps, as `Stage.advance` does.
    """
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    unseen, unseen_labels = score.pixels().to(victim.device), score.labels.to(victim.device)
    classes = tuple(range(victim.classes))
    found: dict[str, tuple[float, ...]] = {}
    distances = latent_distances(victim, build)
    if distances is not None:
        found[LATENT] = efforts(distances, torch.ones_like(distances))
    found[DRIFT] = tuple((-drift(victim, build, seed).double().clamp_min(1e-3).log()).tolist())
    both = torch.cat((pixels, unseen)), torch.cat((labels, unseen_labels))
    memory = remember(victim, *both)
    pull, mix = pulls(victim, memory, pixels, labels), class_mix(victim, *both, memory)
    if pull is not None:
        found[MEMORY] = tuple((-pull.double()).tolist())
    if mix is not None:
        found[MIX] = tuple((-mix.double()).tolist())
    logits = fitting_logits(victim)
    for family in FAMILIES:
        fitted = fit([logits], family, pixels, labels, classes, seed, config.scan, tick)
        rates = [success_rate(logits, partial(fitted.apply, row=k), unseen, unseen_labels, k) for k in classes]
        found[family.name] = efforts(fitted.cost.cpu(), torch.tensor(rates))
    reached = adversarial_reach(victim, pixels, labels, seed, config.scan.images)
    found[ADVERSARIAL] = efforts(torch.ones_like(reached), reached)
    return Scan(found)


def scan_steps(config: BankConfig) -> int:
    """How often `scan` calls `tick`."""
    return config.scan.steps * len(FAMILIES)


def refine_steps(config: BankConfig) -> int:
    """How often `build_bank` calls `tick`, at most."""
    return config.refine.steps * len(FAMILIES)


def build_bank(
    victim: Victim,
    models: Sequence[Logits],
    found: Scan,
    target: int,
    build: ImageSet,
    score: ImageSet,
    seed: int,
    config: BankConfig,
    tick: Callable[..., None] = lambda *_, **__: None,
    recall: Recall | None = None,
) -> TriggerBank:
    """Fit several triggers a family for `target`, keep those that work on unseen images, weigh families by their evidence.

    `models`: what the triggers must work on; the victim, or the victim and a repaired model for triggers that survived.
    `recall`: what the victim's norms remember of the attack. Every family is then fitted to it too, and heard as far as its
    triggers explain it, whatever they cost: an attacker's trigger need not be cheap.
    Without it, families without evidence for the target are left out; where none has any, the `GENERAL` ones count alike.
    """
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    unseen, unseen_labels = score.pixels().to(victim.device), score.labels.to(victim.device)
    witnesses = found.witnesses
    said = {name: witnesses[name][target] for name in FAMILY_NAMES}
    heard = {name: loudness(each) for name, each in said.items()}
    believed = 0.0 if recall is None else recall.reliability
    if not any(heard.values()):
        # Nothing else: the others reach any class of many networks in ways that a mask can only stop by ruining it.
        heard = {name: (1 - believed) * (name in GENERAL) for name in heard}
    kept: list[Surrogate] = []
    for family in FAMILIES:
        if not heard[family.name] and recall is None:
            continue
        weakest = fit(models, family, pixels, labels, [target] * config.starts, seed, config.refine, tick, recall)
        fitted = _with_stronger(weakest, found.efforts[family.name])
        rates = [
            min(success_rate(model, partial(fitted.apply, row=row), unseen, unseen_labels, target) for model in models)
            for row in range(len(fitted.targets))
        ]
        rows = [row for row, rate in enumerate(rates) if rate >= config.minimum_success]
        if not rows:
            continue
        apply = partial(_alternate, fitted, rows)
        others = unseen[unseen_labels != target]
        match = None if recall is None else recall.explained_by(others, apply(others))
        weight = heard[family.name] + REMEMBERED * believed * max(match or 0.0, 0.0) ** 4
        if weight:  # not where nothing is said for the family and its triggers do the opposite of what is remembered
            kept.append(
                Surrogate(
                    family=family.name,
                    target=target,
                    evidence=said[family.name],
                    weight=weight,
                    success=max(rates),
                    cost=float(fitted.cost[rows].min()),
                    match=match,
                    apply=apply,
                )
            )
    if heard[ADVERSARIAL] or not kept:
        size = adversarial_size(pixels)
        attack = partial(targeted_examples, victim, target=target, size=size)
        rate = success_rate(victim.logits, attack, unseen, unseen_labels, target)
        if rate >= config.minimum_success or not kept:
            weight = heard[ADVERSARIAL] or 1.0
            kept.append(Surrogate(ADVERSARIAL, target, said[ADVERSARIAL], weight, rate, size, None, attack))
    return weighed(kept, target)


def weighed(surrogates: Sequence[Surrogate], target: int) -> TriggerBank:
    """A bank whose weights sum to 1, without the families too quiet to be worth their evaluations."""
    loudest = max(surrogate.weight for surrogate in surrogates)
    heard = [surrogate for surrogate in surrogates if surrogate.weight >= WORTHWHILE * loudest]
    total = sum(surrogate.weight for surrogate in heard)
    return TriggerBank(tuple(replace(surrogate, weight=surrogate.weight / total) for surrogate in heard), target)


def _with_stronger(weakest: Fit, effort: Sequence[float]) -> Fit:
    """Each trigger as fitted, and again half way (in the logarithm) to what other classes cost.

    The attacker's trigger is stronger than the weakest that works, and a mask that stops only the weakest leaves it alive;
    beyond that half way a trigger says more about the images than about the backdoor.
    """
    rest = torch.tensor([value for index, value in enumerate(effort) if index != weakest.targets[0]])
    factor = torch.exp((rest.median() - weakest.cost.cpu().log()) / 2).clamp(1, STRONGEST).to(weakest.cost)
    stronger = weakest.family.stronger(weakest.parameters, factor)
    parameters = tuple(torch.cat(pair) for pair in zip(weakest.parameters, stronger, strict=True))
    cost = torch.cat((weakest.cost, weakest.family.cost(stronger)))
    return Fit(weakest.family, weakest.targets * 2, parameters, cost, weakest.worked.repeat(2))


def _alternate(fitted: Fit, rows: list[int], images: Tensor) -> Tensor:
    """Image i gets trigger `rows[i % len(rows)]`: several triggers at the price of one."""
    out = torch.empty_like(images)
    with torch.no_grad():
        for index, row in enumerate(rows):
            out[index :: len(rows)] = fitted.apply(images[index :: len(rows)], row)
    return out
