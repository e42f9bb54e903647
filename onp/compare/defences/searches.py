"""The search baselines: detection, trigger bank, objective and number of evaluations of `onp.defend`, another search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.pruning import Pruning
from onp.data.images import ImageSet, joined, split
from onp.defend.presets import PRESETS
from onp.detect.bank import TargetClass, invert_triggers
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectRun
from onp.detect.targets import detect_targets
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.search.env import PruneEnv
from onp.search.setup import SearchRun, build_env

Search = Callable[[PruneEnv, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Searcher:
    """A search over masks in place of the agent's."""

    search: Search

    def run(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning:
        """The detection, the trigger bank and the objective of `onp.defend`; nothing is pruned where it finds no backdoor."""
        preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
        splits = split(clean, config.seed)
        bn = bn_statistics(victim, joined(splits.build, splits.score))
        detection = detect_targets(victim, splits, bn, DetectRun(preset.bank, config.seed))
        if not detection.targets:
            return Pruning(Mask.of(victim), 0)
        target = TargetClass(detection.targets[0], detection.scores, bn_match(victim, bn))
        bank = invert_triggers(victim, target, splits, DetectRun(detection.deciding_config, config.seed))
        problem = build_env(victim, splits, bank, bn, SearchRun(preset.search, config.seed))
        evaluations = preset.search.agent.max_evaluations
        keep = self.search(problem.env, problem.features.taylor, evaluations, config.seed)
        return Pruning(Mask.of(victim, keep), problem.env.evaluations)

    def prune(self, victim: Victim, clean: ImageSet, config: DefenceConfig) -> Mask:
        """The mask alone."""
        return self.run(victim, clean, config).mask
