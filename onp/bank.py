"""The bank: surrogate triggers found on clean images, the class they point at, and how far each may be believed.

Families are fitted for every class at once, to minimal cost; a family speaks for a class as loudly as that class is
anomalously cheap in it (its *evidence*), because a strong enough trigger leads anywhere and success alone says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onp.adversarial import adversarial_reach, adversarial_size, targeted_examples
from onp.data import ImageSet
from onp.fitting import Fit, FitConfig, Logits, fit, success_rate
from onp.latent import latent_directions
from onp.program import constant, gated_forward, logits_node
from onp.surrogates import FAMILIES
from onp.tally import TriggeredBatch
from onp.victim import Victim

ADVERSARIAL = "adversarial"
FAMILY_NAMES = (*(family.name for family in FAMILIES), ADVERSARIAL)
QUIET = 0.5  # evidence below this is noise
LOUDEST = 6.0  # a witness is not heard beyond this many robust standard deviations


@dataclass(frozen=True)
class BankConfig:
    """How the bank is built."""

    scan: FitConfig = FitConfig(steps=50, images=12)  #: every class, to find the suspect
    refine: FitConfig = FitConfig(steps=60, images=32, keep=0.95)  #: the suspect alone, several starts
    starts: int = 2  #: triggers a family keeps for the suspect
    minimum_success: float = 0.6  #: on unseen images, or the trigger is dropped
    threshold: float = 2.5  #: suspicion from which a class counts as a backdoor's target


@dataclass(frozen=True)
class Surrogate:
    """Triggers of one family for one class; image i gets trigger i modulo their number."""

    family: str
    target: int
    evidence: float  #: how anomalously cheap the class is in this family; see `evidence`
    weight: float  #: share in the bank's ASR; the weights of a bank sum to 1
    success: float  #: share of unseen images of other classes led to the target
    cost: float  #: of the cheapest trigger, in the family's unit
    apply: Callable[[Tensor], Tensor]  #: float32 images `[N, C, H, W]` in [0, 1] to triggered images


@dataclass(frozen=True)
class Scan:
    """How anomalously cheap each class is, by every witness (`latent` and the families); float per class."""

    witnesses: dict[str, tuple[float, ...]]

    @property
    def suspicion(self) -> tuple[float, ...]:
        """Mean of the two loudest witnesses per class: one alone may be a quirk of the data."""
        table = torch.tensor(list(self.witnesses.values())).clamp(-LOUDEST, LOUDEST)
        return tuple(table.sort(dim=0, descending=True).values[:2].mean(0).tolist())

    @property
    def suspect(self) -> int:
        """The class with the highest suspicion."""
        return max(range(len(self.suspicion)), key=self.suspicion.__getitem__)


@dataclass(frozen=True)
class TriggerBank:
    """Surrogate triggers for one target class, and their weights."""

    surrogates: tuple[Surrogate, ...]
    target: int

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight per surrogate, in the order of `batches`; they sum to 1."""
        return tuple(surrogate.weight for surrogate in self.surrogates)

    def batches(self, victim: Victim, images: ImageSet) -> list[TriggeredBatch]:
        """The images that are not of the target class, triggered and normalised, one batch a surrogate."""
        others = images.subset(images.labels != self.target)
        pixels, labels = others.pixels().to(victim.device), others.labels.to(victim.device)
        goal = torch.full_like(labels, self.target)
        return [
            TriggeredBatch(surrogate.family, victim.normalisation(surrogate.apply(pixels)).detach(), labels, goal)
            for surrogate in self.surrogates
        ]


def evidence(cost: Tensor, success: Tensor) -> Tensor:
    """How anomalously cheap each class is: robust z-score of the log of cost over success, positive where cheap.

    Median and median absolute deviation over the *other* classes (Neural Cleanse's anomaly index, taken on the log so that
    it does not depend on the family's unit). `cost`, `success` float `[classes]`; returns float32 `[classes]`.
    """
    effort = torch.log(cost.double().clamp_min(1e-6)) - torch.log(success.double().clamp(0.02, 1))
    scores = []
    for k in range(len(effort)):
        rest = torch.cat((effort[:k], effort[k + 1 :]))
        middle = rest.median()
        spread = 1.4826 * (rest - middle).abs().median()
        scores.append((middle - effort[k]) / spread.clamp_min(0.1))
    return torch.stack(scores).float()


def scan(victim: Victim, build: ImageSet, score: ImageSet, seed: int, config: BankConfig,
         tick: Callable[[], None] = lambda: None) -> Scan:  # fmt: skip
    """Ask every witness about every class; sees clean images only. `tick` is called `scan_steps(config)` times."""
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    unseen, unseen_labels = score.pixels().to(victim.device), score.labels.to(victim.device)
    classes = tuple(range(victim.classes))
    witnesses: dict[str, tuple[float, ...]] = {}
    distances = latent_distances(victim, build)
    if distances is not None:
        witnesses["latent"] = tuple(evidence(distances, torch.ones_like(distances)).tolist())
    for family in FAMILIES:
        fitted = fit([victim.logits], family, pixels, labels, classes, seed, config.scan, tick)
        rates = [
            success_rate(victim.logits, partial(fitted.apply, row=k), unseen, unseen_labels, k) for k in classes
        ]
        witnesses[family.name] = tuple(evidence(fitted.cost.cpu(), torch.tensor(rates)).tolist())
    reached = adversarial_reach(victim, pixels, labels, seed, config.scan.images)
    witnesses[ADVERSARIAL] = tuple(evidence(torch.ones_like(reached), reached).tolist())
    return Scan(witnesses)


def scan_steps(config: BankConfig) -> int:
    """How often `scan` calls `tick`."""
    return config.scan.steps * len(FAMILIES)


def refine_steps(config: BankConfig) -> int:
    """How often `build_bank` calls `tick`, at most."""
    return config.refine.steps * len(FAMILIES)


def build_bank(victim: Victim, models: Sequence[Logits], found: Scan, target: int, build: ImageSet, score: ImageSet, seed: int,
               config: BankConfig, tick: Callable[[], None] = lambda: None) -> TriggerBank:  # fmt: skip
    """Fit several triggers a family for `target`, keep those that work on unseen images, weigh families by their evidence.

    `models`: what the triggers must work on; the victim, or the victim and a repaired model for triggers that survived.
    Families without evidence for the target are left out, unless none has any.
    """
    pixels, labels = build.pixels().to(victim.device), build.labels.to(victim.device)
    unseen, unseen_labels = score.pixels().to(victim.device), score.labels.to(victim.device)
    heard = {name: min(max(found.witnesses[name][target] - QUIET, 0.0), LOUDEST) for name in FAMILY_NAMES}
    if not any(heard.values()):
        heard = dict.fromkeys(heard, 1.0)
    kept: list[Surrogate] = []
    for family in FAMILIES:
        if not heard[family.name]:
            continue
        fitted = fit(models, family, pixels, labels, [target] * config.starts, seed, config.refine, tick)
        rates = [
            min(success_rate(model, partial(fitted.apply, row=row), unseen, unseen_labels, target) for model in models)
            for row in range(config.starts)
        ]
        rows = [row for row, rate in enumerate(rates) if rate >= config.minimum_success]
        if rows:
            kept.append(
                Surrogate(
                    family=family.name,
                    target=target,
                    evidence=found.witnesses[family.name][target],
                    weight=heard[family.name],
                    success=max(rates),
                    cost=float(fitted.cost[rows].min()),
                    apply=partial(_alternate, fitted, rows),
                )
            )
    if heard[ADVERSARIAL] or not kept:
        size = adversarial_size(pixels)
        attack = partial(targeted_examples, victim, target=target, size=size)
        rate = success_rate(victim.logits, attack, unseen, unseen_labels, target)
        if rate >= config.minimum_success or not kept:
            weight = heard[ADVERSARIAL] or 1.0
            said = found.witnesses[ADVERSARIAL][target]
            kept.append(Surrogate(ADVERSARIAL, target, said, weight, rate, size, attack))
    total = sum(surrogate.weight for surrogate in kept)
    return TriggerBank(tuple(replace(surrogate, weight=surrogate.weight / total) for surrogate in kept), target)


def given_bank(apply: Callable[[Tensor], Tensor], target: int) -> TriggerBank:
    """The bank of a trigger that the user knows."""
    return TriggerBank((Surrogate("given", target, LOUDEST, 1.0, 1.0, 0.0, apply),), target)


def latent_distances(victim: Victim, images: ImageSet) -> Tensor | None:
    """Length float32 `[classes]` of the latent minimum-norm direction; None where the head is not linear on a vector."""
    head = logits_node(victim.program.graph)
    if head.target is not torch.ops.aten.linear.default or len(head.args) < 3:
        return None
    weight, bias = (constant(victim.program, node) for node in head.args[1:3])
    inputs = victim.normalisation(images.pixels().to(victim.device))
    name, gates = head.args[0].name, torch.ones(victim.units, device=victim.device)
    with torch.no_grad():
        features = torch.cat(
            [gated_forward(victim, part, gates, outputs=(name,))[1][name] for part in inputs.split(64)]
        )
    if features.dim() != 2:
        return None
    return latent_directions(features.cpu(), weight.cpu(), bias.cpu()).norm(dim=1)


def _alternate(fitted: Fit, rows: list[int], images: Tensor) -> Tensor:
    """Image i gets trigger `rows[i % len(rows)]`: several triggers at the price of one."""
    out = torch.empty_like(images)
    with torch.no_grad():
        for index, row in enumerate(rows):
            out[index :: len(rows)] = fitted.apply(images[index :: len(rows)], row)
    return out
