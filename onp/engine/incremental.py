"""What one mask leaves to compute, given the values of the network under the base mask, and the channels it needs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.plan import Plan
from onp.engine.steps import Activation, ConvStep, OpStep, Step, activate
from onp.model.interpret import expand_units

Mask = NDArray[np.bool_]
# Of channels that CPU kernels work on together, a vector register or a row of a matrix tile: fewer pruned ones save nothing.
LANE_BYTES = 64


@dataclass(frozen=True)
class Suffix:
    """`start`: the first step that has to run anew. `gated`: the changed steps before it, whose base output is enough."""

    start: int
    gated: tuple[int, ...]


def suffix_of(plan: Plan, changed: dict[int, bool], first: int) -> Suffix:
    """Follow a mask from `first`, the first step it changes against the base.

    `changed[i]`: the mask changes step i; True where it only takes units away from the base. The output of such a step,
    if its inputs are the base's, is the base's output with those channels pruned: no convolution is needed.
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
        if index < start and not set(plan.steps[index].inputs[1:]) <= set(held(plan, start)):
            start = index
            gated = [before for before in gated if before < start]
    return Suffix(start, tuple(gated))


def held(plan: Plan, index: int) -> tuple[str, ...]:
    """The values to keep at a cut before step `index`: those alive, and what the step before it added."""
    added = plan.steps[index - 1].inputs[1:] if index and isinstance(plan.steps[index - 1], ConvStep) else ()
    return tuple({*plan.live[index], *added})


def pruned_output(step: Step, value: Tensor, added: Tensor | None, keep: Tensor) -> Tensor:
    """`value`, which `step` made under the base, as it is when only the units `keep` (bool `[K]`) stay."""
    if step.gate is None:
        raise ValueError(f"{step.name} has no units")
    gate = expand_units(keep, value.dim(), step.gate.dim)
    if isinstance(step, OpStep):
        return value.where(gate, 0)
    without = value.new_zeros(()) if added is None else added.to(value.dtype).clone()
    return value.where(gate, activate(without, getattr(step, "activation", None)))


def feeders(plan: Plan) -> dict[int, int]:
    """Reading step -> the step whose output it reads, where pruned channels need not exist in between.

    Both are convs, the output is zero where a unit is pruned, and only convs without groups read it, as their input.
    """
    readers: dict[str, list[int]] = {}
    for index, step in enumerate(plan.steps):
        for name in step.inputs:
            readers.setdefault(name, []).append(index)
    found = {}
    for index, step in enumerate(plan.steps):
        if isinstance(step, ConvStep) and step.gate is not None and not step.adds and step.groups == 1:
            after = readers.get(step.name, [])
            if _zero_stays(step.activation) and all(_reads_channels(plan.steps[reader], step.name) for reader in after):
                found.update(dict.fromkeys(after, index))
    return found


def needed_channels(units: Mask, itemsize: int) -> Tensor | None:
    """Kept channels, filled up with pruned ones to whole lanes of values of `itemsize` bytes: int64, ascending; None: all."""
    lanes = LANE_BYTES // itemsize
    count = max(lanes, -(-int(units.sum()) // lanes) * lanes)
    if count >= len(units):
        return None
    return torch.from_numpy(np.sort(np.argsort(~units, kind="stable")[:count]))


def _zero_stays(activation: Activation | None) -> bool:
    return not activate(torch.zeros(1), activation).any()


def _reads_channels(step: Step, name: str) -> bool:
    return isinstance(step, ConvStep) and step.groups == 1 and name not in step.inputs[1:]
