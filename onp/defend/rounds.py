"""Which class a backdoor leads to where several stand out alike, and a repair for each class that needs one.

A short look ranks classes by triggers that are far from minimal. It may rank two alike that a longer one tells apart, or let
one barely count that does not: then every class is looked at again with more steps. Where several stand out even so, each may
be the target of its own backdoor: one is repaired, the others are asked about again on the repaired network, and those that
still stand out are repaired too.
Where the first look is clear, none of this happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onp.data.images import ImageSet, Splits, joined
from onp.defend.config import DefendConfig
from onp.defend.monitor import Monitor
from onp.defend.presets import Preset
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import Bank, TargetClass, TriggerBank, inversion_steps, invert_triggers
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import SECOND_PASS_STEPS, DetectRun
from onp.detect.scan import scan, scan_steps
from onp.detect.targets import Detection
from onp.engine.metrics import accuracy, predictions
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.victim import Victim
from onp.search.mask_search import REMOVED, Found, search
from onp.search.setup import batch_of

NEXT = 10_000  # added to the seed of each repair after the first
AGAIN = 500  # added to the seed of the detection on a repaired network


@dataclass(frozen=True, eq=False)
class Round:
    """The repair of one class."""

    target: int
    found: Found

    @property
    def works(self) -> bool:
        """Whether a mask within the accuracy budget takes most of the surrogate triggers' success away."""
        outcome = self.found.results[-1].outcome
        return bool(outcome.acceptable) and float(outcome.asr) <= (1 - REMOVED) * self.found.asr_before


@dataclass(frozen=True, eq=False)
class Rounds:
    """The repair of all classes that stand out; it holds if every round works, of which the last alone may not."""

    rounds: tuple[Round, ...]
    asked: tuple[
        DetectionScores, ...
    ]  #: every class again, on the network as repaired so far, after a round that left others open
    mask: Mask  #: of all rounds together

    @property
    def works(self) -> bool:
        return all(each.works for each in self.rounds)


def repair_classes(
    victim: Victim, splits: Splits, detection: Detection, config: DefendConfig, preset: Preset, monitor: Monitor
) -> Rounds | None:
    """Repair the predicted target, and after a second pass every other class that reaches the threshold; None: no class does.

    Each round begins with the network as repaired so far and has what is left of the accuracy budget.
    """
    left = list(detection.targets)
    settings = detection.deciding_config
    current, scores, keep = victim, detection.scores, Mask.of(victim).keep
    rounds: list[Round] = []
    asked: list[DetectionScores] = []
    while left:
        target, seed = left[0], config.seed + NEXT * len(rounds)
        now = preset
        if rounds:
            spent = max(_accuracy(victim, splits) - _accuracy(current, splits), 0.0)
            objective = preset.search.objective
            drops = (max(drop - spent, 0.0) for drop in (objective.max_acc_drop, objective.budget))
            objective = replace(objective, **dict(zip(("max_acc_drop", "budget"), drops, strict=True)))
            now = replace(now, search=replace(preset.search, objective=objective))
        bn = bn_statistics(current, joined(splits.build, splits.score))
        # Pruning changes the means of the channels, so triggers match the residual of the network as given only.
        match = None if rounds or not settings.refine.bn_match_weight else bn_match(current, bn)
        run = DetectRun(settings, seed)
        bank = invert_bank("inverting triggers", current, TargetClass(target, scores, match), splits, run, monitor)
        rounds.append(Round(target, search_mask(current, splits, bank, scores, seed, now, monitor)))
        keep = keep & rounds[-1].found.mask.keep
        if len(left) == 1 or not rounds[-1].works:
            break
        current = repair(victim, Mask.of(victim, keep))
        run = DetectRun(settings, seed + NEXT + AGAIN)
        bn = bn_statistics(current, joined(splits.build, splits.score))
        with monitor.stage("detecting on the repaired network", scan_steps(settings)) as bar:
            scores = scan(current, splits, bn, replace(run, tick=bar.advance))
        asked.append(scores)
        left = [k for k in scores.over(settings.threshold) if k in left[1:]]
    return Rounds(tuple(rounds), tuple(asked), Mask.of(victim, keep)) if rounds else None


def invert_bank(
    stage: str, victim: Victim, target: TargetClass, splits: Splits, run: DetectRun, monitor: Monitor
) -> TriggerBank:
    """`invert_triggers` as a stage of a run."""
    with monitor.stage(stage, inversion_steps(run.config)) as bar:
        return invert_triggers(victim, target, splits, replace(run, tick=bar.advance))


def search_mask(
    victim: Victim, splits: Splits, bank: Bank, seen: DetectionScores | None, seed: int, preset: Preset, monitor: Monitor
) -> Found:
    """`search` as a stage of a run."""
    with monitor.stage("searching for the mask", preset.search.agent.max_evaluations) as bar:
        return search(victim, splits, bank, seen, seed, preset.bank, preset.search, monitor.steps(bar))


def _accuracy(victim: Victim, splits: Splits) -> float:
    batch = batch_of(victim, splits.build, splits.score)
    return accuracy(batch.labels, predictions(victim.model, batch.images)).value
