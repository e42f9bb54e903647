"""Target classes: the probability that a network has a backdoor, and towards which class, in one pass of detection or more.

A pass scores every class with every detector; `onp.detect.probability` makes probabilities of the scores. Where these leave it
open whether there is a backdoor, or which classes are its targets, another pass follows (`DetectConfig.passes` at most): with
other seeds, and with the images that triggers are inverted on and those that they are measured on exchanged. The log odds of
all passes are averaged. A further class is a target only where every pass finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from onp import progress
from onp.data.images import Splits
from onp.detect.anomaly import DetectionScores
from onp.detect.bn_statistics import BnStatistics
from onp.detect.config import DetectRun
from onp.detect.probability import (
    SIZES,
    Context,
    LearnedVerdict,
    TargetProbabilities,
    averaged,
    learned_verdict,
    target_probabilities,
)
from onp.detect.scan import inverted, scan, scan_steps, with_inversion
from onp.model.victim import Victim
from onp.numerics import derive_seed

STAGE = "detecting the target class"  # of the first pass
FURTHER = 4  # classes, at most, that triggers are inverted for because other detectors alone make them the probable target

Stages = Callable[[str, int], AbstractContextManager[progress.Stage]]
"""Opens a stage of a run by its name and number of steps, as `onp.progress.stage` does."""
silent: Stages = partial(progress.stage, quiet=True)


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of detection."""

    scores: DetectionScores  #: what the detectors measured
    probabilities: TargetProbabilities  #: what follows from it

    @staticmethod
    def of(victim: Victim, clean: Splits, bn: BnStatistics, run: DetectRun, verdict: LearnedVerdict) -> Pass:
        """Score every class; triggers are inverted for the most probable target in any case.

        Args:
            victim: the network.
            clean: build and score images are used.
            bn: BN statistics of the victim on these images.
            run: settings, seed, progress (`scan_steps` steps) and resume store.
            verdict: what was learned.
        """
        scores = scan(victim, clean, bn, run)
        context = context_of(victim, bn, len(clean.build) + len(clean.score))
        found = target_probabilities(scores, context, verdict)
        for _ in range(FURTHER):
            if found.backdoor < verdict.none_below or inverted(scores, found.predicted_target):
                break
            scores = with_inversion(scores, found.predicted_target, victim, clean, run)
            found = target_probabilities(scores, context, verdict)
        return Pass(scores, found)


def context_of(victim: Victim, bn: BnStatistics, images: int) -> Context:
    """What is known of a network beside its scores.

    Args:
        victim: the network.
        bn: its BN statistics on the clean images.
        images: how many clean images the detectors have.
    """
    batch_norms, comparable = bool(bn.norms) and not bn.left_out, all(side in SIZES for side in victim.input_shape[1:])
    return Context(victim.classes, images, batch_norms, bn.pruned > 0, comparable)


@dataclass(frozen=True, eq=False)
class Detection:
    """What detection came to: the probability of a backdoor, and of each class as its target."""

    passes: tuple[Pass, ...]  #: one, or more where the first leaves something open
    verdict: LearnedVerdict  #: whose thresholds decide
    pruned: int = 0  #: units that were pruned already; where there are any, no detector that reads BN statistics has a say

    @property
    def scores(self) -> DetectionScores:
        """What the detectors measured in the last pass."""
        return self.passes[-1].scores

    @property
    def probabilities(self) -> TargetProbabilities:
        """Of all passes together."""
        return averaged([each.probabilities for each in self.passes], self.verdict)

    @property
    def predicted_target(self) -> int:
        """The most probable target, whether there is a backdoor or not."""
        return self.probabilities.predicted_target

    @property
    def backdoored(self) -> bool:
        """Whether the probability of a backdoor reaches the upper threshold."""
        return self.probabilities.backdoor >= self.verdict.backdoor_from

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes to repair: the most probable one first; others only where each of several passes finds them."""
        if not self.backdoored:
            return ()
        first, *others = ranking(self.probabilities)
        if len(self.passes) == 1:
            return (first,)
        found = [evident(each.probabilities, self.verdict) for each in self.passes]
        return (first, *(k for k in others if all(k in each for each in found)))


def ranking(probabilities: TargetProbabilities) -> list[int]:
    """All classes, the most probable target first."""
    return sorted(range(len(probabilities.per_class)), key=lambda k: -probabilities.per_class[k])


def evident(probabilities: TargetProbabilities, verdict: LearnedVerdict) -> list[int]:
    """The classes whose own probability is evidence of a backdoor, the most probable first."""
    return [k for k in ranking(probabilities) if probabilities.per_class[k] >= verdict.backdoor_from]


def open_question(probabilities: TargetProbabilities, verdict: LearnedVerdict) -> bool:
    """Whether probabilities leave it open if there is a backdoor, or which classes are its targets."""
    if probabilities.backdoor < verdict.backdoor_from:
        return probabilities.backdoor >= verdict.none_below
    return len(evident(probabilities, verdict)) != 1


def detect_targets(victim: Victim, clean: Splits, bn: BnStatistics, run: DetectRun, stages: Stages = silent) -> Detection:
    """Score every class, and again where what was found leaves something open.

    Args:
        victim: the network.
        clean: build and score images are used.
        bn: BN statistics of the victim on build and score images together.
        run: settings, seed and resume store.
        stages: shows the progress of each pass.
    """
    verdict = learned_verdict()
    splits = (clean, replace(clean, build=clean.score, score=clean.build))
    found = Detection((), verdict, bn.pruned)
    for number in range(run.config.passes):
        name = STAGE + (f", pass {number + 1}" if number else "")
        seed = derive_seed(run.seed, "pass", number) if number else run.seed
        with stages(name, scan_steps(run.config)) as stage:
            one = replace(run, seed=seed, progress=stage.advance)
            found = replace(found, passes=(*found.passes, Pass.of(victim, splits[number % 2], bn, one, verdict)))
        if not open_question(found.probabilities, verdict):
            break
    return found
