"""A network forwards and back in fused steps, for fitting triggers on a CPU: norms folded, channels last, Winograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onp.engine.plan import plan_of
from onp.engine.steps import ConvStep, Run, Step, bind_torch
from onp.engine.torch_backend.winograd import bind_differentiable, suits
from onp.model.interpret import run_graph
from onp.model.victim import Victim

Logits = Callable[[Tensor], Tensor]  # float32 images [N, C, H, W] in [0, 1] -> [N, classes]
Forward = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Images float32 `[N, C, H, W]` in [0, 1] -> the logits and named values on the way; differentiable in the images."""


def fitting_logits(victim: Victim) -> Logits:
    """The logits of the victim, up to rounding; on a GPU those of the network's own code."""
    if victim.device.type != "cpu":
        return victim.logits
    forward = fused_forward(victim)
    return lambda images: forward(images)[0]


def forward_of(victim: Victim, keep: Sequence[str]) -> Forward:
    """The logits, and the values of the graph nodes named in `keep`."""
    if victim.device.type == "cpu":
        return fused_forward(victim, keep)

    def forward(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return run_graph(victim.program, victim.normalisation(images.to(victim.device)), lambda _, value: value, keep)

    return forward


def fused_forward(victim: Victim, keep: Sequence[str] = ()) -> Forward:
    """`forward_of` in fused steps, on any device."""
    plan = plan_of(victim, keep)
    runs = [_bind(step, plan.shapes[step.inputs[0]] if step.inputs else None) for step in plan.steps]

    def forward(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = victim.normalisation(images.to(victim.device))
        values: dict[str, Any] = {plan.input: inputs.contiguous(memory_format=torch.channels_last)}
        kept = {name: values[name] for name in keep if name == plan.input}
        for index, (step, run) in enumerate(zip(plan.steps, runs, strict=True)):
            values[step.name] = run(*(values[name] for name in step.inputs))
            if step.name in keep:
                kept[step.name] = values[step.name]
            for name in values.keys() - set(plan.live[index + 1]):
                del values[name]
        return values[plan.output], kept

    return forward


def _bind(step: Step, shape: tuple[int, ...] | None) -> Run:
    if isinstance(step, ConvStep) and shape and suits(step, torch.float32, shape):
        return bind_differentiable(step)
    return bind_torch(step, None, torch.float32)
