"""Target classes: one pass of detection, and a second one where the first is ambiguous.

The first pass inverts triggers in few steps, so their costs are far from minimal. Two classes may then score alike that more
steps tell apart, or one class may barely reach the threshold by chance. In these cases all classes are scored again, with more
steps and other seeds. Where several classes reach the threshold in both passes, each may be the target of its own backdoor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from onp import progress
from onp.data.images import Splits
from onp.detect.anomaly import WITHOUT_INVERSION, DetectionScores
from onp.detect.bn_statistics import BnStatistics
from onp.detect.config import DetectConfig, DetectRun
from onp.detect.scan import scan, scan_steps
from onp.model.victim import Victim
from onp.numerics import derive_seed

MARGIN = 1.0  # score above the threshold from which a single class is no accident of few steps; two detectors give it
SEPARATION = 3.0  # score between two classes from which the first pass tells them apart

Stages = Callable[[str, int], AbstractContextManager[progress.Stage]]
"""Opens a stage of a run by its name and number of steps, as `onp.progress.stage` does."""
silent: Stages = partial(progress.stage, quiet=True)


@dataclass(frozen=True, eq=False)
class Detection:
    """The detection scores of a network."""

    first: DetectionScores
    second: DetectionScores | None  #: of a second pass; None where the first was not ambiguous
    config: DetectConfig  #: of the first pass
    pruned: int = 0  #: units that were pruned already; where there are any, no detector that reads BN statistics has a say

    @property
    def scores(self) -> DetectionScores:
        """Of the pass that decides: the last one."""
        return self.second or self.first

    @property
    def deciding_config(self) -> DetectConfig:
        """The settings of that pass, which triggers are inverted with too."""
        return self.config if self.second is None else self.config.second_pass()

    @property
    def backdoored(self) -> bool:
        """Whether a class reaches the threshold."""
        return max(self.scores.score) >= self.config.threshold

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes to repair: the highest score first; others only where they reach the threshold in both passes."""
        threshold = self.config.threshold
        reached = self.scores.over(threshold)
        if self.second is None:
            return tuple(reached[:1])
        return (*reached[:1], *(k for k in reached[1:] if self.first.score[k] >= threshold))


def ambiguous(scores: DetectionScores, threshold: float) -> bool:
    """Whether the first pass does not settle the target.

    Two classes reach the threshold at most `SEPARATION` apart, or one reaches it by less than `MARGIN` and would not by those
    detectors alone that more steps do not change.
    """
    highest = scores.over(threshold)[:2]
    if len(highest) == 2 and scores.score[highest[0]] - scores.score[highest[1]] <= SEPARATION:
        return True
    if not highest or scores.score[highest[0]] >= threshold + MARGIN:
        return False
    settled = scores.only(WITHOUT_INVERSION)
    return len(settled.log_costs) < 2 or settled.score[highest[0]] < threshold


def detect_targets(victim: Victim, clean: Splits, bn: BnStatistics, run: DetectRun, stages: Stages = silent) -> Detection:
    """Score every class, a second time with more steps where the first pass is ambiguous.

    Args:
        victim: the network.
        clean: build and score images are used.
        bn: BN statistics of the victim on build and score images together.
        run: settings, seed and resume store.
        stages: shows the progress of each pass.
    """
    with stages("detecting the target class", scan_steps(run.config)) as stage:
        first = scan(victim, clean, bn, replace(run, progress=stage.advance))
    if not ambiguous(first, run.config.threshold):
        return Detection(first, None, run.config, bn.pruned)
    again = replace(run, config=run.config.second_pass(), seed=derive_seed(run.seed, "second_pass"))
    with stages("detecting the target class again, with more steps", scan_steps(again.config)) as stage:
        second = scan(victim, clean, bn, replace(again, progress=stage.advance))
    return Detection(first, second, run.config, bn.pruned)
