"""What a search over masks is given: the features of the units and the environment to prune in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.augment import views
from onp.data.images import ImageSet, Splits
from onp.detect.anomaly import LOUDEST, MEMORY, Scan, loudness
from onp.detect.bank import Bank
from onp.detect.bn_statistics import pulls, remember
from onp.engine.evaluator import Batch, Evaluator
from onp.engine.metrics import predictions
from onp.engine.scoring import TriggeredBatch
from onp.model.victim import Victim
from onp.search.agent import AgentConfig
from onp.search.env import VIEWS, Objective, PruneEnv
from onp.search.features import NodeFeatures, features


@dataclass(frozen=True)
class SearchConfig:
    """How a mask is searched for."""

    agent: AgentConfig = AgentConfig()
    objective: Objective = Objective()
    views: int = 2  #: changed copies of each clean image; those the network gets right are to stay right
    target_views: int = 8  #: the same for images of the target class, which are few and suffer first
    rounds: int = 1  #: agent runs; each after the first adds the triggers that survived the repair before it
    anomalous: float = 3.0  #: evidence from which a trigger that survived a repair counts as the backdoor's


@dataclass(frozen=True, eq=False)
class Problem:
    """One search, however it is made."""

    known: NodeFeatures
    env: PruneEnv


def build_problem(
    victim: Victim,
    splits: Splits,
    bank: Bank,
    seed: int,
    config: SearchConfig,
    record: Callable[[Evaluator], Evaluator] = lambda evaluator: evaluator,
    *,
    memory: bool = True,
) -> Problem:
    """Features from the build images, an environment that scores masks on build and score images, triggered ones and copies.

    `record` wraps the evaluator; without `memory` nothing is told of what the norms remember.
    """
    parts = (splits.build, splits.score)
    shifts, belief = remembered(victim, parts, bank.target) if memory else (torch.zeros(victim.units), 0.0)
    triggered = bank.batches(victim, splits, "build")
    known = features(victim, batch_of(victim, splits.build), triggered, bank.weights, memory=shifts)
    copies = changed_views(victim, parts, bank.target, config, seed)
    # Clean accuracy is counted on both splits: neither trained the network, and more images make a finer scale.
    evaluator = record(Evaluator(victim, batch_of(victim, *parts), [*judging(victim, splits, bank), *copies]))
    blocks = len(victim.layers) if config.agent.per_layer else config.agent.blocks
    env = PruneEnv(victim, evaluator, bank.weights, config.objective, carriers=belief * known.carrier, blocks=blocks)
    return Problem(known, env)


def judging(victim: Victim, splits: Splits, bank: Bank) -> list[TriggeredBatch]:
    """The triggered images that masks are judged on, one batch a family."""
    batches = []
    for same in zip(*(bank.batches(victim, splits, part) for part in bank.judges), strict=True):
        images, labels, target = (torch.cat([getattr(part, name) for part in same]) for name in ("images", "labels", "target"))
        batches.append(TriggeredBatch(same[0].family, images, labels, target))
    return batches


def remembered(victim: Victim, parts: Sequence[ImageSet], target: int) -> tuple[Tensor, float]:
    """What the norms remember of each unit, float32 `[V]`, and how far that is believed to be about `target`, 0 to 1.

    Memory that pulls to no class, or to another one, may be anything and is not acted upon.
    """
    pixels, labels = torch.cat([part.pixels() for part in parts]), torch.cat([part.labels for part in parts])
    memory = remember(victim, pixels, labels)
    pull = pulls(victim, memory, pixels, labels)
    said = 0.0 if pull is None else Scan({MEMORY: tuple((-pull.double()).tolist())}).witnesses[MEMORY][target]
    return memory.of_units(victim), loudness(said) / LOUDEST


def batch_of(victim: Victim, *parts: ImageSet) -> Batch:
    """Several image sets as one clean batch."""
    pixels = torch.cat([part.pixels() for part in parts]).to(victim.device)
    return Batch(victim.normalisation(pixels), torch.cat([part.labels for part in parts]).to(victim.device))


def changed_views(
    victim: Victim, parts: Sequence[ImageSet], target: int, config: SearchConfig, seed: int
) -> list[TriggeredBatch]:
    """Changed copies of the images that the unpruned network still gets right, each aimed at its own class.

    A batch for the other classes and one for the target class, whose "ASR" is the share that stays right; a batch is missing
    where the network gets every copy wrong. Wrong copies are left out: a backdoor answers to many changes of an image, a shift
    or another contrast among them, and agreement with what it says there would reward keeping it.
    """
    pixels, labels = torch.cat([part.pixels() for part in parts]), torch.cat([part.labels for part in parts])
    batches = []
    groups = ((labels != target, config.views), (labels == target, config.target_views))
    for name, (chosen, count) in zip(VIEWS, groups, strict=True):
        inputs = victim.normalisation(views(pixels[chosen], count, seed).to(victim.device))
        wanted = labels[chosen].repeat(count).to(victim.device)
        right = predictions(victim.model, inputs) == wanted
        if right.any():
            batches.append(TriggeredBatch(name, inputs[right], torch.full_like(wanted[right], -1), wanted[right]))
    return batches
