"""The search baselines: everything as in `onp.defend`, but another search in place of onp's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.pruning import Pruning
from onp.data.images import ImageSet, split
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.repair_loop import repair_targets
from onp.defend.run import Run
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import Bank
from onp.detect.bn_statistics import BnStatistics, bn_statistics
from onp.detect.targets import detect_targets
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.search.course import FoundMask
from onp.search.env import PruneEnv
from onp.search.mask_search import REMOVED, SearchResult
from onp.search.setup import SearchRun, build_env

Search = Callable[[PruneEnv, Tensor, int, int], Tensor]
"""From an environment, a score of its units (float32 `[V]`), a number of evaluations and a seed to a mask, bool `[V]`."""


@dataclass(frozen=True)
class SearchBaseline:
    """A search over masks in place of onp's."""

    search: Search
    preset: str = "default"  #: of `onp.defend`

    def run(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning:
        """Repair what `onp.defend` would; nothing is pruned where its detection finds no backdoor.

        Args:
            victim: the network.
            clean: all clean images.
            config: seed and accuracy budget.
        """
        options = DefendConfig(preset=self.preset, max_acc_drop=config.max_acc_drop, seed=config.seed, quiet=True)
        case, run = Case(victim, split(clean, config.seed)), Run.of(options)
        bn = bn_statistics(victim, case.searched)
        detection = detect_targets(victim, case.clean, bn, run.detecting())
        repairs = repair_targets(case, detection, bn, run, self._search)
        if repairs is None:
            return Pruning(Mask.of(victim), 0)
        return Pruning(repairs.mask, sum(repair.search.evaluations for repair in repairs.repairs))

    def _search(self, case: Case, bank: Bank, scores: DetectionScores | None, bn: BnStatistics, run: Run) -> SearchResult:
        """As `onp.defend.repair_loop.search_for`, without that search and without extending the bank."""
        problem = build_env(case.victim, case.clean, bank, bn, SearchRun(run.preset.search, run.seed))
        env = problem.env
        asr_before = float(env.outcome.asr)
        keep = self.search(env, problem.features.taylor, run.preset.search.method.max_evaluations, run.seed)
        return SearchResult(
            mask=Mask.of(case.victim, keep),
            bank=bank,
            results=(FoundMask(keep, env.outcome, (), env.evaluations),),
            asr_before=asr_before,
            evaluations=env.evaluations,
            seconds=env.evaluator.seconds,
            required_budget=env.required_budget((1 - REMOVED) * asr_before),
        )
