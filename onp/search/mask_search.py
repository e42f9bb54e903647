"""From a bank of triggers to a mask: a search, made again on whatever triggers survive its repair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from onp.data.images import Splits
from onp.detect.anomaly import DetectionScores, anomaly_index, log_costs, log_odds_costs, spread_floor
from onp.detect.bank import Bank, TargetClass, TriggerBank, invert_triggers, weighted_bank
from onp.detect.blend import BLEND
from onp.detect.bn_statistics import BnStatistics
from onp.detect.config import DetectRun
from onp.detect.pgd import PGD
from onp.detect.small_patch import SMALL_PATCH
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import Victim
from onp.search import first_order
from onp.search.agent import AgentConfig, build_policies, train
from onp.search.course import FoundMask, Progress
from onp.search.env import Outcomes
from onp.search.first_order import FirstOrderConfig
from onp.search.problem import SearchProblem
from onp.search.setup import SearchRun, build_env

REMOVED = 0.5  # share of the surrogate ASR that a repair must take away to be called one
# Share that half of the evaluations must take away where another part of the accuracy budget is left to try: on 29 networks of
# the zoo five searches worked within the first part, which had taken away 26 % or more by then; 20 of the others had less than
# this.
REMOVED_BY_HALF = 0.2


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best mask and what it took; `asr_before`, `outcome` and `required_budget` are all measured with `bank`."""

    mask: Mask
    bank: Bank  #: of the last search
    results: tuple[FoundMask, ...]  #: of each search
    asr_before: float  #: weighted surrogate ASR of the unpruned network
    evaluations: int
    seconds: float  #: inside the evaluator
    required_budget: float | None  #: the ACC budget, a share, that a mask removing `REMOVED` of the ASR needs; None: none seen

    @property
    def outcome(self) -> Outcomes:
        """What `mask` achieves."""
        return self.results[-1].outcome

    @property
    def works(self) -> bool:
        """Whether the mask is within the ACC budget and removes `REMOVED` of the surrogate ASR."""
        return _works(self.outcome, self.asr_before)


def search_mask(victim: Victim, splits: Splits, bank: Bank, bn: BnStatistics | None, run: SearchRun) -> SearchResult:
    """Search, and again with the triggers that survived the repair as long as some do and `SearchConfig.rounds` allows.

    Each round tries one part of the accuracy budget after the other, `SearchConfig.budget_parts`, until a mask works.

    Args:
        victim: the network to be pruned.
        splits: clean images; the holdout split is not used.
        bank: triggers for the target class.
        bn: BN statistics of the victim, measured on build and score images; None for a search without them.
        run: configuration, seed, store, progress, and how a bank is extended.
    """
    rounds = run.config.rounds
    results: list[FoundMask] = []
    evaluations, seconds = 0, 0.0
    for number in range(rounds):
        run = replace(run, number=number)
        evaluations_each = run.config.method.max_evaluations // rounds
        method = replace(run.config.method, seed=run.search_seed, max_evaluations=evaluations_each)
        problem = build_env(victim, splits, bank, bn, run)
        asr_before = float(problem.env.outcome.asr)
        for part in run.config.budget_parts:
            problem.env.reset(run.config.objective.part(part))
            last = part == run.config.budget_parts[-1]
            results.append(_found(problem, method if last else _giving_up(method), run.progress))
            evaluations += results[-1].evaluations
            if _works(results[-1].outcome, asr_before):
                break
        seconds += problem.env.evaluator.seconds
        mask = Mask.of(victim, results[-1].keep)
        if run.extend_bank is None or not isinstance(bank, TriggerBank) or number + 1 == rounds:
            break
        extended = run.extend_bank(prune(victim, mask), bank, run.search_seed + 1)
        if extended is None:
            break
        bank = extended
    required = problem.env.required_budget((1 - REMOVED) * asr_before)
    return SearchResult(mask, bank, tuple(results), asr_before, evaluations, seconds, required)


def _giving_up(method: FirstOrderConfig | AgentConfig) -> FirstOrderConfig | AgentConfig:
    """The same, but a search that gets nowhere ends early."""
    if isinstance(method, AgentConfig):
        return method
    return replace(method, patience=replace(method.patience, least_removed=REMOVED_BY_HALF))


def _found(problem: SearchProblem, method: FirstOrderConfig | AgentConfig, progress: Progress | None) -> FoundMask:
    if isinstance(method, AgentConfig):
        return train(problem, build_policies(problem, method), method, progress)
    return first_order.search(problem, method, progress)


def _works(outcome: Outcomes, asr_before: float) -> bool:
    return bool(outcome.acceptable) and float(outcome.asr) <= (1 - REMOVED) * asr_before


@dataclass(frozen=True, eq=False)
class SurvivingTriggers:
    """Extends a bank by the triggers that work on the victim *and* on the pruned network, at an anomalously low cost.

    Such a trigger is a backdoor that the repair missed. One that costs as much as other classes do is an adversarial
    example, which every network has.
    """

    victim: Victim  #: unpruned
    splits: Splits  #: clean images
    scores: DetectionScores  #: what other classes cost
    run: DetectRun  #: how triggers are inverted
    anomalous: float  #: least anomaly index

    def __call__(self, pruned: Victim, bank: TriggerBank, seed: int) -> TriggerBank | None:
        """`bank` with what survived in `pruned`, or None where nothing did."""
        target, run = TargetClass(bank.target, self.scores), replace(self.run, seed=seed)
        inverted = invert_triggers(self.victim, target, self.splits, run, pruned)
        surrogates, weights = list(bank.surrogates), list(bank.weights)
        for surrogate, weight in zip(inverted.surrogates, inverted.weights, strict=True):
            if surrogate.family in (PGD, BLEND):  # they lead to every class of many networks
                continue
            success = torch.tensor([surrogate.success])
            patch = surrogate.family == SMALL_PATCH  # all cost the same, and detection measures how far they lead
            (cost,) = log_odds_costs(success) if patch else log_costs(torch.tensor([surrogate.cost]), success)
            others = self.scores.log_costs[surrogate.family]
            index = anomaly_index(others, bank.target, spread_floor(surrogate.family), cost)
            if surrogate.success >= run.config.minimum_success and index >= self.anomalous:
                surrogates.append(replace(surrogate, family=f"{surrogate.family} {seed}", anomaly_index=index))
                weights.append(weight)
        return weighted_bank(surrogates, weights, bank.target) if len(surrogates) > len(bank.surrogates) else None
