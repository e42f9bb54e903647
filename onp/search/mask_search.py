"""From a bank of surrogate triggers to a mask: the agent, run again on whatever triggers survive its repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from onp.data.images import Splits
from onp.detect.anomaly import Scan, efforts, evidence, least_spread
from onp.detect.bank import ADVERSARIAL, Bank, BankConfig, TriggerBank, build_bank, weighed
from onp.engine.differentiable import fitting_logits
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.victim import Victim
from onp.resume import recorded
from onp.search.agent import TrainResult, Update, build_policies, train
from onp.search.neuron_graph import build_graph
from onp.search.setup import SearchConfig, build_problem

REMOVED = 0.5  # share of the surrogate ASR that a repair must take away to be called one


@dataclass(frozen=True, eq=False)
class Found:
    """The best mask and what it took."""

    mask: Mask
    bank: Bank  #: as it was in the last round
    results: tuple[TrainResult, ...]
    asr_before: float  #: weighted surrogate ASR on the score images
    evaluations: int
    seconds: float  #: inside the evaluator
    price: (
        float | None
    )  #: the accuracy budget, a share, that a mask which takes `REMOVED` of it away would need; None: none seen


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
    results: list[TrainResult] = []
    evaluations, seconds, asr_before = 0, 0.0, 1.0
    budget = config.agent.max_evaluations // config.rounds
    for number in range(config.rounds):
        agent = replace(config.agent, seed=seed + number, max_evaluations=budget)
        problem = build_problem(victim, splits, bank, seed, config, partial(recorded, name=f"scores-{seed + number}"))
        env, known = problem.env, problem.known
        asr_before = float(env.outcome.asr) if number == 0 else asr_before
        policies = build_policies(graph, known, env, agent)
        results.append(train(env, policies, known, agent, progress))
        evaluations += results[-1].evaluations
        seconds += env.evaluator.seconds
        mask = Mask.of(victim, results[-1].keep)
        if found is None or not isinstance(bank, TriggerBank) or number + 1 == config.rounds:
            break
        survivors = surviving(
            victim, repair(victim, mask), bank, found, splits, seed + 1 + number, bank_config, config.anomalous
        )
        if survivors is None:
            break
        bank = survivors
    price = env.price((1 - REMOVED) * asr_before)
    return Found(mask, bank, tuple(results), asr_before, evaluations, seconds, price)


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
    models = fitting_logits(victim), fitting_logits(repaired)
    fresh = build_bank(victim, models, found, bank.target, splits.build, splits.score, seed, config)
    missed = []
    for surrogate in fresh.surrogates:
        (effort,) = efforts(torch.tensor([surrogate.cost]), torch.tensor([surrogate.success]))
        left = evidence(found.efforts[surrogate.family], bank.target, effort, least_spread(surrogate.family))
        if surrogate.family != ADVERSARIAL and surrogate.success >= config.minimum_success and left >= anomalous:
            missed.append(replace(surrogate, family=f"{surrogate.family} {seed}", evidence=left))
    if not missed:
        return None
    return weighed((*bank.surrogates, *missed), bank.target)
