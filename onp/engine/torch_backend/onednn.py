"""Steps of a plan as oneDNN primitives: conv, bias, residual addition and activation in one pass over packed weights.

The operators are those torch's own compiler emits for frozen CPU graphs (torch/_inductor/mkldnn_ir.py).
"""

from typing import Any

import torch
from torch import Tensor

from onp.engine.steps import Activation, ConvStep, Run, ScaleStep, Step, bind_torch, masked

aten = torch.ops.aten


def bind_onednn(step: Step, keep: Tensor | None, dtype: torch.dtype, input_shape: tuple[int, ...]) -> Run:
    """Bind a step to oneDNN; a step that has no oneDNN form runs as `onp.engine.steps.bind_torch` does.

    Args:
        step: of the plan.
        keep: float `[K]`, the mask in its packed weights; None keeps all.
        dtype: float32 or bfloat16.
        input_shape: `[N, C, H, W]` that the weights are packed for; other batch sizes give the same result.
    """
    match step:
        case ConvStep():
            fused = _attribute(step.activation, step.adds)
            if fused is not None:
                return _bind_conv(step, keep, dtype, input_shape, fused)
        case ScaleStep():
            fused = _attribute(step.activation, False)
            if fused is not None and len(input_shape) == 4:
                return _bind_scale(step, keep, dtype, input_shape, fused)
    return bind_torch(step, keep, dtype)


def _attribute(activation: Activation | None, adds: bool) -> tuple[str, list[Any]] | None:
    """oneDNN's name and scalars for an activation; None where it has none at this place."""
    if activation is None:
        return "none", []
    if activation.target is aten.relu.default:
        return "relu", []
    if adds:
        return None
    if activation.target is aten.relu6.default:
        return "hardtanh", [0.0, 6.0]
    if activation.target is aten.hardtanh.default:
        return "hardtanh", [float(bound) for bound in (*activation.args, *(-1, 1)[len(activation.args) :])]
    if activation.target is aten.silu.default:
        return "swish", []
    return None


def _bind_conv(
    step: ConvStep, keep: Tensor | None, dtype: torch.dtype, input_shape: tuple[int, ...], fused: tuple[str, list[Any]]
) -> Run:
    unary, scalars = fused
    geometry = (step.padding, step.stride, step.dilation, step.groups)
    weight = masked(step.weight, keep).to(dtype)  # type: ignore[union-attr]
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, input_shape)
    bias = masked(step.bias, keep)
    bias = None if bias is None else bias.to(dtype)
    if step.adds:
        call = torch.ops.mkldnn._convolution_pointwise.binary
        act = None if unary == "none" else unary
        return lambda x, added: call(
            *(_channels_last(x, dtype), _channels_last(added, dtype), packed, bias, *geometry),
            *("add", None, act, [], None),
        )
    call = torch.ops.mkldnn._convolution_pointwise.default
    return lambda x: call(_channels_last(x, dtype), packed, bias, *geometry, unary, scalars, "")


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the steps over small maps leave is neither of the layouts oneDNN reads."""
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _bind_scale(
    step: ScaleStep, keep: Tensor | None, dtype: torch.dtype, input_shape: tuple[int, ...], fused: tuple[str, list[Any]]
) -> Run:
    """Scale, shift and activation as a depthwise 1x1 conv: one pass instead of two or three."""
    unary, scalars = fused
    geometry = ((0, 0), (1, 1), (1, 1), step.scale.numel())
    scale = masked(step.scale, keep).to(dtype)  # type: ignore[union-attr]
    packed = torch.ops.mkldnn._reorder_convolution_weight(scale.reshape(-1, 1, 1, 1), *geometry, input_shape)
    shift = masked(step.shift, keep).to(dtype)  # type: ignore[union-attr]
    call, otherwise = torch.ops.mkldnn._convolution_pointwise.default, bind_torch(step, keep, dtype)

    def run(x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return otherwise(x)
        return call(x.to(dtype), packed, shift, *geometry, unary, scalars, "")

    return run
