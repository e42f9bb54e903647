"""From a bank of surrogate triggers to a mask: the agent, run again on whatever triggers survive its repair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onp.agent import AgentConfig, TrainResult, Update, build_policies, train
from onp.bank import (
    ADVERSARIAL,
    LEAST_SPREAD_OF,
    LOUDEST,
    MEMORY,
    Bank,
    BankConfig,
    Scan,
    TriggerBank,
    build_bank,
    efforts,
    evidence,
    loudness,
    weighed,
)
from onp.data import ImageSet, Splits
from onp.env import VIEWS, Objective, PruneEnv
from onp.evaluator import Batch, Evaluator
from onp.features import features
from onp.graph import build_graph
from onp.mask import Mask
from onp.memory import pulls, remember
from onp.metrics import predictions
from onp.repair import repair
from onp.state import remembering
from onp.tally import TriggeredBatch
from onp.victim import Victim
from onp.views import views


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
class Found:
    """The best mask and what it took."""

    mask: Mask
    bank: Bank  #: as it was in the last round
    results: tuple[TrainResult, ...]
    asr_before: float  #: weighted surrogate ASR on the score images
    evaluations: int
    seconds: float  #: inside the evaluator


def search(
    victim: Victim,
    splits: Splits,
    bank: Bank,
    found: Scan | None,
    seed: int,
    bank_config: BankConfig,
    config: SearchConfig,
    progress: Callable[[Update], None],
) -> Found:
    """Find the mask; `found` is None for a known trigger, whose bank is never extended.

    `progress` is called with every step of the search.
    """
    graph = build_graph(victim, config.agent.relations)
    build = batch_of(victim, splits.build)
    shifts, belief = remembered(victim, (splits.build, splits.score), bank.target)
    results: list[TrainResult] = []
    evaluations, seconds, asr_before = 0, 0.0, 1.0
    budget = config.agent.max_evaluations // config.rounds
    for number in range(config.rounds):
        agent = replace(config.agent, seed=seed + number, max_evaluations=budget)
        known = features(victim, build, bank.batches(victim, splits, "build"), bank.weights, memory=shifts)
        # Clean accuracy is counted on both splits: neither trained the network, and more images make a finer scale.
        clean = batch_of(victim, splits.build, splits.score)
        copies = changed_views(victim, (splits.build, splits.score), bank.target, config, seed)
        evaluator = remembering(Evaluator(victim, clean, [*bank.batches(victim, splits, "score"), *copies]), f"scores-{number}")
        blocks = len(victim.layers) if agent.per_layer else agent.blocks
        env = PruneEnv(victim, evaluator, bank.weights, config.objective, carriers=belief * known.carrier, blocks=blocks)
        asr_before = float(env.outcome.asr) if number == 0 else asr_before
        policies = build_policies(graph, known, env, agent)
        results.append(train(env, policies, known, agent, progress))
        evaluations += results[-1].evaluations
        seconds += evaluator.seconds
        mask = Mask.of(victim, results[-1].keep)
        if found is None or not isinstance(bank, TriggerBank) or number + 1 == config.rounds:
            break
        survivors = surviving(
            victim, repair(victim, mask), bank, found, splits, seed + 1 + number, bank_config, config.anomalous
        )
        if survivors is None:
            break
        bank = survivors
    return Found(mask, bank, tuple(results), asr_before, evaluations, seconds)


def surviving(
    victim: Victim,
    repaired: Victim,
    bank: TriggerBank,
    found: Scan,
    splits: Splits,
    seed: int,
    config: BankConfig,
    anomalous: float,
) -> TriggerBank | None:
    """`bank` and the triggers that work on the victim *and* on the repaired model, cheaply for a class without a backdoor.

    What works on both and is still anomalously cheap is a backdoor that the repair missed; what has become as dear as other
    classes is ordinary adversarial weakness. None where nothing survived.
    """
    fresh = build_bank(victim, (victim.logits, repaired.logits), found, bank.target, splits.build, splits.score, seed, config)
    missed = []
    for surrogate in fresh.surrogates:
        (effort,) = efforts(torch.tensor([surrogate.cost]), torch.tensor([surrogate.success]))
        left = evidence(found.efforts[surrogate.family], bank.target, effort)
        if surrogate.family != ADVERSARIAL and surrogate.success >= config.minimum_success and left >= anomalous:
            missed.append(replace(surrogate, family=f"{surrogate.family} {seed}", evidence=left))
    if not missed:
        return None
    return weighed((*bank.surrogates, *missed), bank.target)


def remembered(victim: Victim, parts: Sequence[ImageSet], target: int) -> tuple[Tensor, float]:
    """What the norms remember of each unit, float32 `[V]`, and how far that is believed to be about `target`, 0 to 1.

    Memory that pulls to no class, or to another one, may be anything and is not acted upon.
    """
    pixels, labels = torch.cat([part.pixels() for part in parts]), torch.cat([part.labels for part in parts])
    memory = remember(victim, pixels, labels)
    pull = pulls(victim, memory, pixels, labels)
    said = 0.0 if pull is None else evidence((-pull.double()).tolist(), target, least=LEAST_SPREAD_OF[MEMORY])
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
