"""A network forwards and back in fused steps, for fitting triggers on a CPU: norms folded, channels last, Winograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onp.engine.plan import Plan, plan_of
from onp.engine.steps import ConvStep, LinearStep, Run, Step, bind_torch
from onp.engine.torch_backend import image_gradient
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
    runs = _bound(plan)

    def forward(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return _run(plan, runs, 0, _input(victim, images), keep)

    return forward


@dataclass(frozen=True, eq=False)
class Halves:
    """A network as two functions, the second of which reads nothing but what the first gives."""

    first: Callable[[Tensor], Tensor]  #: images float32 `[N, C, H, W]` in [0, 1] -> features `[N, *shape]`
    second: Logits  #: features `[N, *shape]` -> logits `[N, classes]`; differentiable
    shape: tuple[int, ...]  #: of the features of an image
    depth: float  #: share of the convs and linear layers that the first function holds


def halves(victim: Victim, depth: float) -> Halves | None:
    """Cut the network where one value alone leads on to the logits, in fused steps, on any device.

    Args:
        victim: the network.
        depth: share of its convs and linear layers that should lie before the cut; the nearest cut is taken.

    Returns:
        None where there is no such value but the image and the input of the last layer.
    """
    plan = plan_of(victim)
    layers = [isinstance(step, (ConvStep, LinearStep)) for step in plan.steps]
    cuts = [
        index
        for index in range(1, len(plan.steps))
        if len(plan.live[index]) == 1 and plan.shapes[plan.live[index][0]] and any(layers[:index]) and sum(layers[index:]) > 1
    ]
    if not cuts:
        return None
    # Of equally deep cuts the last one: its features are the smallest.
    cut = min(reversed(cuts), key=lambda index: abs(sum(layers[:index]) / sum(layers) - depth))
    runs, (name,) = _bound(plan), plan.live[cut]

    def first(images: Tensor) -> Tensor:
        return _run(plan, runs[:cut], 0, _input(victim, images), (name,))[1][name]

    shape = plan.shapes[name]
    assert shape is not None
    return Halves(first, lambda features: _run(plan, runs, cut, features)[0], shape, sum(layers[:cut]) / sum(layers))


def _input(victim: Victim, images: Tensor) -> Tensor:
    inputs = victim.normalisation(images.to(victim.device)).contiguous(memory_format=torch.channels_last)
    if inputs.shape[1] > 1:
        return inputs
    # Of one channel the strides of both formats hold: only those of channels-last make the first layer's output so.
    return inputs.flatten(1).view(len(inputs), *inputs.shape[2:], 1).permute(0, 3, 1, 2)


def _bound(plan: Plan) -> list[Run]:
    return [_bind(step, plan.shapes[step.inputs[0]] if step.inputs else None) for step in plan.steps]


def _run(plan: Plan, runs: Sequence[Run], start: int, value: Tensor, keep: Sequence[str] = ()) -> tuple[Any, dict[str, Tensor]]:
    """Run the steps from `start` on, as many as there are `runs`, on the one value that they read.

    Returns:
        The logits, None where the last step is not run; and the values named in `keep`.
    """
    (name,) = plan.live[start]
    values: dict[str, Any] = {name: value}
    kept = {name: value} if name in keep else {}
    for index in range(start, len(runs)):
        step = plan.steps[index]
        values[step.name] = runs[index](*(values[name] for name in step.inputs))
        if step.name in keep:
            kept[step.name] = values[step.name]
        for unread in values.keys() - set(plan.live[index + 1]):
            del values[unread]
    return values.get(plan.output), kept


def _bind(step: Step, shape: tuple[int, ...] | None) -> Run:
    if isinstance(step, ConvStep) and shape and suits(step, torch.float32, shape):
        return bind_differentiable(step)
    if isinstance(step, ConvStep) and image_gradient.suits(step, torch.float32):
        return image_gradient.bind_first_conv(step)
    return bind_torch(step, None, torch.float32)
