"""The prefix cache: values alive at a few cut points of the plan, for every chunk of images, under one base mask."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from onp.engine.incremental import held, suffix_of
from onp.engine.plan import Plan


def choose_cuts(
    plan: Plan, image_bytes: dict[int, int], images: int, budget: int, starts: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Step indices to cache before, ascending, together at most `budget` bytes for `images` images.

    `image_bytes[i]` is what the cut before step `i` keeps for one image; only these indices are candidates.
    Greedy: the cut that saves the most FLOPs a byte comes first. `starts`: where a mask that changes each gated step first has
    to start to compute, all equally likely; None where that is the gated step itself.
    """
    before = [0.0, *accumulate(plan.cost)]
    if starts is None:
        starts = [index for index, step in enumerate(plan.steps) if step.gate is not None]
    cuts: list[int] = []
    left = budget

    def saved(cut: int) -> float:
        below = max((other for other in cuts if other < cut), default=0)
        above = min((other for other in cuts if other > cut), default=len(plan.steps) + 1)
        return (before[cut] - before[below]) * sum(cut <= start < above for start in starts)

    candidates = set(image_bytes)
    while candidates:
        best = max(sorted(candidates), key=lambda cut: saved(cut) / max(1, image_bytes[cut]))
        candidates.discard(best)
        if saved(best) > 0 and image_bytes[best] * images <= left:
            cuts.append(best)
            left -= image_bytes[best] * images
    return tuple(sorted(cuts))


class PrefixCache:
    """Filled as runs pass the cut points; `forget_from` drops what a new base mask makes stale."""

    def __init__(self, plan: Plan, images: int, value_bytes: int, budget: int) -> None:
        image_bytes = {}
        for index in range(1, len(plan.steps)):
            shapes = [plan.shapes[name] for name in held(plan, index) if name != plan.input]
            # A mask resumes before the first step that it changes, or behind it where the base's output is enough.
            if any(step.gate is not None for step in plan.steps[index - 1 : index + 1]) and None not in shapes:
                image_bytes[index] = sum(math.prod(shape or ()) for shape in shapes) * value_bytes
        self.plan = plan
        gated = [index for index, step in enumerate(plan.steps) if step.gate is not None]
        starts = [suffix_of(plan, {index: True}, index).start for index in gated]
        self.cuts = choose_cuts(plan, image_bytes, images, budget, starts)
        self._kept: dict[tuple[int, int], dict[str, Any]] = {}

    def resume(self, chunk: int, start: int) -> tuple[int, dict[str, Any]]:
        """The deepest cached step at or before `start` and the values held there; 0 and nothing if there is none."""
        for cut in reversed(self.cuts):
            if cut <= start and (chunk, cut) in self._kept:
                return cut, dict(self._kept[chunk, cut])
        return 0, {}

    def offer(self, chunk: int, step: int, values: dict[str, Any]) -> None:
        """Keep the values held before `step` if it is a cut point; they must be those of the base mask."""
        if step in self.cuts:
            self._kept[chunk, step] = {name: values[name] for name in held(self.plan, step)}

    def forget_from(self, step: int) -> None:
        """Drop every cut after `step`, the first step that the new base mask changes."""
        for key in [key for key in self._kept if key[1] > step]:
            del self._kept[key]

    @property
    def bytes(self) -> int:
        """Bytes held now, each tensor once, the images themselves aside."""
        held = {
            id(value): value.numel() * value.element_size()
            for kept in self._kept.values()
            for name, value in kept.items()
            if isinstance(value, Tensor) and name != self.plan.input
        }
        return sum(held.values())
