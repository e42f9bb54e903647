"""What the Triton kernels cover of a plan: convs and linear layers, activations, and the end of a network as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from onp.engine.plan import Plan
from onp.engine.steps import Activation, ConvStep, LinearStep, OpStep, Step

aten = torch.ops.aten
RESHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dims}


@dataclass(frozen=True)
class Tail:
    """The end of a plan as one kernel: `linear` on the mean of the value `source` over its positions.

    `linear` None: `source` is the logits. `skipped`: the steps this stands for. `pooled`: a conv without activation that only
    the mean reads; its mean is computed in its place.
    """

    linear: LinearStep | None
    source: str
    skipped: frozenset[int]
    pooled: str | None


def is_product(step: Step, plan: Plan) -> bool:
    """Whether `masked_conv` covers `step`: a conv of one group, or a linear layer on one vector an image."""
    if not isinstance(step, ConvStep | LinearStep) or epilogue_of(step.activation) is None:
        return False
    rank = len(plan.shapes[step.inputs[0]] or ())
    return (rank == 3 and step.groups == 1) if isinstance(step, ConvStep) else rank == 1


def epilogue_of(activation: Activation | None) -> dict[str, Any] | None:
    """`activation` as arguments of a kernel; None for one that the kernels do not know or that makes something of zero."""
    if activation is None:
        return {"activation": "none"}
    if activation.target in (aten.silu.default, aten.hardswish.default):
        return {"activation": "silu" if activation.target is aten.silu.default else "hardswish"}
    if activation.target is aten.hardtanh.default:
        given = activation.args
        low, high = given[0] if given else -1.0, given[1] if len(given) > 1 else 1.0
    elif activation.target in (aten.relu.default, aten.relu6.default):
        low, high = 0.0, 6.0 if activation.target is aten.relu6.default else float("inf")
    else:
        return None
    return {"activation": "clamp", "low": float(low), "high": float(high)} if low <= 0 <= high else None


def tail_of(plan: Plan) -> Tail:
    steps = {step.name: index for index, step in enumerate(plan.steps)}
    readers = {name: sum(name in step.inputs for step in plan.steps) for name in plan.shapes}
    last = plan.steps[steps[plan.output]]
    if not isinstance(last, LinearStep) or last.mask_slice or last.activation or len(plan.shapes[last.inputs[0]] or ()) != 1:
        return Tail(None, plan.output, frozenset(), None)
    skipped = {steps[plan.output]}
    source = last.inputs[0]
    while source in steps and readers[source] == 1:
        index = steps[source]
        step = plan.steps[index]
        if not isinstance(step, OpStep) or step.mask_slice is not None:
            break
        shape = plan.shapes[step.inputs[0]] or ()
        if _is_mean(step, plan):
            skipped.add(index)
            (source,) = step.inputs
            conv = plan.steps[steps[source]] if source in steps else None
            alone = isinstance(conv, ConvStep) and is_product(conv, plan) and conv.activation is None and readers[source] == 1
            return Tail(last, source, frozenset(skipped), source if alone else None)
        if step.target not in RESHAPES or len(step.inputs) > 2 or len(shape) != 3 or shape[1:] != (1, 1):
            break
        skipped.add(index)
        source = step.inputs[0]
    return Tail(last, source, frozenset(skipped), None)


def _is_mean(step: OpStep, plan: Plan) -> bool:
    """Whether `step` is the mean of images over all positions."""
    if len(plan.shapes[step.inputs[0]] or ()) != 3:
        return False
    if step.target is aten.adaptive_avg_pool2d.default:
        return (plan.shapes[step.name] or ())[1:] == (1, 1)
    return step.target is aten.mean.dim and sorted(dim % 4 for dim in step.args[1]) == [2, 3]
