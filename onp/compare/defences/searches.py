"""The search baselines as peers: onp's scan, bank (recall included), objective and number of evaluations, another search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.pruning import Pruning
from onp.data.images import ImageSet, split
from onp.defend.presets import PRESETS
from onp.defend.rounds import recall_of
from onp.detect.bank import build_bank, scan
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.search.env import PruneEnv
from onp.search.setup import build_problem

Search = Callable[[PruneEnv, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Searcher:
    """A search over masks in place of the agent's."""

    search: Search

    def run(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning:
        """Nothing is pruned where the scan finds no evidence of a backdoor, as in `onp.defend`."""
        preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
        splits = split(clean, config.seed)
        found = scan(victim, splits.build, splits.score, config.seed, preset.bank)
        if max(found.suspicion) < preset.bank.threshold:
            return Pruning(Mask.of(victim), 0)
        known, parts, models = recall_of(victim, splits, preset), (splits.build, splits.score), (victim.logits,)
        bank = build_bank(victim, models, found, found.suspect, *parts, config.seed, preset.bank, recall=known)
        problem = build_problem(victim, splits, bank, config.seed, preset.search)
        evaluations = preset.search.agent.max_evaluations
        keep = self.search(problem.env, problem.known.taylor, evaluations, config.seed)
        return Pruning(Mask.of(victim, keep), problem.env.evaluations)

    def prune(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Mask:
        """The mask alone."""
        return self.run(victim, clean, config).mask
