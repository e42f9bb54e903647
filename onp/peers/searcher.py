"""The search baselines as peers: onp's scan, bank, objective and number of evaluations, another search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from onp.bank import build_bank, scan
from onp.data import ImageSet, split
from onp.env import PruneEnv
from onp.evaluator import Evaluator
from onp.features import features
from onp.mask import Mask
from onp.peers.config import PeerConfig
from onp.peers.pruning import Pruning
from onp.presets import PRESETS
from onp.search import batch_of, changed_views, remembered
from onp.victim import Victim

Search = Callable[[PruneEnv, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Searcher:
    """A search over masks in place of the agent's."""

    search: Search

    def run(self, victim: Victim, clean: ImageSet, config: PeerConfig) -> Pruning:
        """Nothing is pruned where the scan finds no evidence of a backdoor, as in `onp.defend`."""
        preset = PRESETS[config.preset].with_max_acc_drop(config.max_acc_drop)
        splits = split(clean, config.seed)
        found = scan(victim, splits.build, splits.score, config.seed, preset.bank)
        if max(found.suspicion) < preset.bank.threshold:
            return Pruning(Mask.of(victim), 0)
        models = (victim.logits,)
        bank = build_bank(victim, models, found, found.suspect, splits.build, splits.score, config.seed, preset.bank)
        parts = (splits.build, splits.score)
        shifts, belief = remembered(victim, parts, bank.target)
        build, triggered = batch_of(victim, splits.build), bank.batches(victim, splits, "build")
        known = features(victim, build, triggered, bank.weights, memory=shifts)
        copies = changed_views(victim, parts, bank.target, preset.search, config.seed)
        evaluator = Evaluator(victim, batch_of(victim, *parts), [*bank.batches(victim, splits, "score"), *copies])
        agent = preset.search.agent
        carriers = belief * known.carrier
        env = PruneEnv(victim, evaluator, bank.weights, preset.search.objective, carriers=carriers, blocks=agent.blocks)
        keep = self.search(env, known.taylor, agent.max_evaluations, config.seed)
        return Pruning(Mask.of(victim, keep), env.evaluations)

    def prune(self, victim: Victim, clean: ImageSet, config: PeerConfig) -> Mask:
        """The mask alone."""
        return self.run(victim, clean, config).mask
