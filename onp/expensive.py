"""Networks of which one pass is expensive: how triggers are fitted on them in affordable time.

A ResNet-50 at 224x224 takes a CPU core 0.4 s an image forwards and back, and a quick run on ten classes 20 000 such passes.
Cheap networks are left exactly as they are, and so is everything on a GPU. What counts is the number of operations and not
the time, so that a run goes the same way every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onp.fitting import Logits
from onp.plan import Plan, build_plan
from onp.steps import bind_torch
from onp.victim import Victim

EXPENSIVE = 2e9  # FLOPs an image forwards: a PreActResNet-18 at 32x32 takes 1.2e9, a ResNet-18 at 224x224 4e9


def fitting_logits(victim: Victim) -> Logits:
    """`victim.logits`, differentiable in the images; where a pass is expensive, the same from fused steps, up to rounding."""
    plan = expensive_plan(victim)
    return victim.logits if plan is None else fused_logits(victim, plan)


def expensive_plan(victim: Victim) -> Plan | None:
    """The fused steps of a network on a CPU of which a pass is expensive; None for any other."""
    if victim.device.type != "cpu":
        return None
    plan = build_plan(victim)
    return plan if sum(plan.cost) >= EXPENSIVE else None


def fused_logits(victim: Victim, plan: Plan) -> Logits:
    """The logits of images float32 `[N, C, H, W]` in [0, 1], with norms folded into the layers before them and channels last.

    Of a ResNet-50, forwards and back, in two thirds of the time.
    """
    runs = [bind_torch(step, None, torch.float32) for step in plan.steps]

    def logits(images01: Tensor) -> Tensor:
        inputs = victim.normalisation(images01.to(victim.device))
        values: dict[str, Any] = {plan.input: inputs.contiguous(memory_format=torch.channels_last)}
        for index, (step, run) in enumerate(zip(plan.steps, runs, strict=True)):
            values[step.name] = run(*(values[name] for name in step.inputs))
            for name in values.keys() - set(plan.live[index + 1]):
                del values[name]
        return values[plan.output]

    return logits
