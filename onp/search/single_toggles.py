"""The best mask improved by single units: pruned or brought back, each scored alone, then the best of them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from onp.search.course import Course, Diagnostics


@dataclass(frozen=True, eq=False)
class Toggles:
    """Single units that were scored from one mask."""

    keep: Tensor  #: bool `[V]`, the mask
    allowed: Tensor  #: bool `[V]`, the units that could be picked
    units: Tensor  #: int64 `[B]`, those that were
    gain: Tensor  #: float32 `[B]`, of Phi


Pick = Callable[[Tensor, Tensor, int], Tensor]
"""From the committed mask, the units that may be picked, both bool `[V]`, and their number: the units, int64 `[B]`."""
Learn = Callable[[Toggles], Diagnostics]
"""Learns from toggles that were scored."""


def no_learning(toggles: Toggles) -> Diagnostics:
    """A `Learn` that learns nothing."""
    return Diagnostics()


@dataclass(frozen=True)
class Patience:
    """How many toggles are scored at once, and when the search stops."""

    samples: int = 16  #: toggles scored at once
    groups: int = 3  #: without gain, in a row, before it stops
    least_gain: float = 3e-3  #: Phi that a group must gain; one of 300 images counts as much, and is chance
    least_removed: float = 0.0  #: share of the surrogate ASR that must be gone once half of the evaluations are


def toggle_single_units(course: Course, patience: Patience, pick: Pick, learn: Learn = no_learning) -> None:
    """Score single toggles in groups, and commit the best ones together, until the budget or the patience ends.

    Where nothing is gained, others are tried.

    Args:
        course: of the search.
        patience: when to stop.
        pick: chooses the next units.
        learn: is shown what each gained.
    """
    env, budget = course.env, course.budget
    without_gain, tried = 0, torch.zeros_like(env.keep)
    while budget.left() >= 2 and without_gain < patience.groups:
        if course.share_spent >= 0.5 and course.asr_removed < patience.least_removed:
            return
        # A third of what is left stays for the toggles together.
        count = max(2, min(patience.samples, budget.left() * 2 // 3))
        keep, allowed = env.keep, ~tried
        units = pick(keep, allowed, count)
        toggles = one_hot(units, len(keep)).bool()
        masks = budget.affordable(keep ^ toggles)
        units = units[: len(masks)]
        if len(units) < 2:
            return
        before = env.outcome.phi
        gain = env.evaluate(masks).phi - before
        diagnostics = learn(Toggles(keep, allowed, units, gain))

        # Toggles that do nothing alone count too: of units that do one job together, none does.
        useful = toggles[: len(masks)][gain.argsort(descending=True)]
        sizes = [2**power for power in range(len(useful).bit_length())]
        together = torch.stack([keep ^ useful[:size].any(0) for size in sizes])
        course.commit_best(together, "single toggles", -1, diagnostics)
        without_gain = 0 if bool(env.outcome.phi > before + patience.least_gain) else without_gain + 1
        # From another mask every toggle is a new one.
        tried = torch.zeros_like(tried) if bool(env.outcome.phi > before) else tried.index_fill(0, units, True)
