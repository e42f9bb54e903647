"""Incremental evaluation: what a mask leaves to compute, given cached values of the network under the base mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.plan import Plan
from onp.engine.steps import Activation, ConvStep, OpStep, Step, activate
from onp.model.interpret import expand_units


@dataclass(frozen=True)
class ChangedSteps:
    """The steps of a plan that one mask changes."""

    start: int  #: the first step that has to run again
    gated: tuple[int, ...]  #: the changed steps before it: their output under the base, its pruned channels zeroed, is enough


def changed_steps(plan: Plan, changed: dict[int, bool], first: int) -> ChangedSteps:
    """Follow a mask through the plan.

    The output of a step that only loses units, if its inputs are the base's, is the base's output with those channels pruned:
    no convolution is needed.

    Args:
        plan: of the network.
        changed: by step that the mask changes against the base, whether it only takes units away.
        first: the first of them.
    """
    start, affected, gated = len(plan.steps), set[str](), list[int]()
    for index in range(first, len(plan.steps)):
        step = plan.steps[index]
        if affected.intersection(step.inputs) or changed.get(index) is False:
            start = index
            break
        if index in changed:
            affected.add(step.name)
            gated.append(index)
    # The second input of an addition is kept for one step only.
    for index in reversed([index for index in gated if len(plan.steps[index].inputs) > 1]):
        if index < start and not set(plan.steps[index].inputs[1:]) <= set(live_values(plan, start)):
            start = index
            gated = [before for before in gated if before < start]
    return ChangedSteps(start, tuple(gated))


def live_values(plan: Plan, index: int) -> tuple[str, ...]:
    """Names of the values to cache before step `index`: those still read, and what the step before it added."""
    added = plan.steps[index - 1].inputs[1:] if index and isinstance(plan.steps[index - 1], ConvStep) else ()
    return tuple({*plan.live[index], *added})


def pruned_output(step: Step, value: Tensor, added: Tensor | None, keep: Tensor) -> Tensor:
    """What `step` makes when only some of its units stay.

    Args:
        step: has units.
        value: what it made under the base.
        added: the second input of an addition in the step, or None.
        keep: bool `[K]`, the units that stay.
    """
    if step.mask_slice is None:
        raise ValueError(f"{step.name} has no units")
    gate = expand_units(keep, value.dim(), step.mask_slice.dim)
    if isinstance(step, OpStep):
        return value.where(gate, 0)
    without = value.new_zeros(()) if added is None else added.to(value.dtype).clone()
    return value.where(gate, activate(without, getattr(step, "activation", None)))


def producers(plan: Plan) -> dict[int, int]:
    """By reading step the step whose output it reads, where pruned channels need not exist in between.

    Both are convs, the output is zero where a unit is pruned, and only convs without groups read it, as their input.
    """
    readers: dict[str, list[int]] = {}
    for index, step in enumerate(plan.steps):
        for name in step.inputs:
            readers.setdefault(name, []).append(index)
    producer = {}
    for index, step in enumerate(plan.steps):
        if isinstance(step, ConvStep) and step.mask_slice is not None and not step.adds and step.groups == 1:
            after = readers.get(step.name, [])
            if _zero_stays(step.activation) and all(_reads_channels(plan.steps[reader], step.name) for reader in after):
                producer.update(dict.fromkeys(after, index))
    return producer


def needed_channels(units: NDArray[np.bool_], lanes: int) -> Tensor | None:
    """The channels to compute of a step.

    Args:
        units: bool `[K]`, those that are kept.
        lanes: channels are computed in multiples of this number.

    Returns:
        The kept channels, filled up with pruned ones to whole lanes: int64, ascending; None for all.
    """
    count = max(lanes, -(-int(units.sum()) // lanes) * lanes)
    if count >= len(units):
        return None
    return torch.from_numpy(np.sort(np.argsort(~units, kind="stable")[:count]))


def _zero_stays(activation: Activation | None) -> bool:
    return not activate(torch.zeros(1), activation).any()


def _reads_channels(step: Step, name: str) -> bool:
    return isinstance(step, ConvStep) and step.groups == 1 and name not in step.inputs[1:]


def choose_cuts(
    plan: Plan, image_bytes: dict[int, int], images: int, budget: int, starts: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Choose the steps whose inputs are cached; greedy, the one that saves the most FLOPs a byte first.

    Args:
        plan: of the network.
        image_bytes: by candidate step the bytes of one image's values before it.
        images: how many there are.
        budget: bytes for all images and steps.
        starts: for each step with units, where a mask that changes it first has to start to compute, all equally likely; None
            where that is the step itself.

    Returns:
        Step indices, ascending.
    """
    before = [0.0, *accumulate(plan.cost)]
    if starts is None:
        starts = [index for index, step in enumerate(plan.steps) if step.mask_slice is not None]
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


class ActivationCache:
    """Values under the base mask at a few steps of the plan, for every chunk of images; filled as runs pass these steps.

    Args:
        plan: of the network.
        images: how many there are, in all chunks.
        value_bytes: of one number.
        budget: bytes that may be held, the images themselves aside.
    """

    def __init__(self, plan: Plan, images: int, value_bytes: int, budget: int) -> None:
        image_bytes = {}
        for index in range(1, len(plan.steps)):
            shapes = [plan.shapes[name] for name in live_values(plan, index) if name != plan.input]
            # A mask resumes before the first step that it changes, or behind it where the base's output is enough.
            if any(step.mask_slice is not None for step in plan.steps[index - 1 : index + 1]) and None not in shapes:
                image_bytes[index] = sum(math.prod(shape or ()) for shape in shapes) * value_bytes
        self.plan = plan
        gated = [index for index, step in enumerate(plan.steps) if step.mask_slice is not None]
        starts = [changed_steps(plan, {index: True}, index).start for index in gated]
        self.cuts = choose_cuts(plan, image_bytes, images, budget, starts)
        self._kept: dict[tuple[int, int], dict[str, Any]] = {}

    def resume(self, chunk: int, start: int) -> tuple[int, dict[str, Any]]:
        """The last cached step at or before `start` and its values; 0 and nothing if there is none."""
        for cut in reversed(self.cuts):
            if cut <= start and (chunk, cut) in self._kept:
                return cut, dict(self._kept[chunk, cut])
        return 0, {}

    def offer(self, chunk: int, step: int, values: dict[str, Any]) -> None:
        """Keep the values before `step`, which must be those of the base mask, if it is one of the chosen steps."""
        if step in self.cuts:
            self._kept[chunk, step] = {name: values[name] for name in live_values(self.plan, step)}

    def drop_after(self, step: int) -> None:
        """Drop all values after `step`, the first step that a new base mask changes."""
        for key in [key for key in self._kept if key[1] > step]:
            del self._kept[key]

    @property
    def bytes(self) -> int:
        """Bytes held now, each tensor once, the images themselves aside."""
        sizes = {
            id(value): value.numel() * value.element_size()
            for kept in self._kept.values()
            for name, value in kept.items()
            if isinstance(value, Tensor) and name != self.plan.input
        }
        return sum(sizes.values())
