"""The steps of a plan, and how plain torch runs one of them under a mask."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.model.interpret import expand_units

Run = Callable[..., Any]
"""One step with its mask folded in: takes the values named by `step.inputs`, returns the value named `step.name`."""


@dataclass(frozen=True)
class MaskSlice:
    """Where the units of a step stand in the flat mask, and where in its value."""

    offset: int  #: of the first unit in the mask
    units: int  #: how many follow each other
    dim: int  #: of the value, along which they lie


@dataclass(frozen=True)
class Activation:
    """An elementwise operator and its arguments after the input."""

    target: Any
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """Makes one value of others."""

    name: str  #: of the value: that of the last graph node the step stands for
    inputs: tuple[str, ...]
    mask_slice: MaskSlice | None  #: its units; None where it has none


@dataclass(frozen=True, eq=False)
class ConvStep(Step):
    """2-d conv with the norm after it folded in, then the addition of a second input, then an activation."""

    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: Activation | None

    @property
    def adds(self) -> bool:
        return len(self.inputs) == 2


@dataclass(frozen=True, eq=False)
class LinearStep(Step):
    """Linear layer with the norm after it folded in, then an activation."""

    weight: Tensor  # [K, C]
    bias: Tensor | None
    activation: Activation | None


@dataclass(frozen=True, eq=False)
class ScaleStep(Step):
    """A norm that stands alone: `x * scale + shift` by channel, then an activation."""

    scale: Tensor  # [K]
    shift: Tensor  # [K]
    activation: Activation | None


@dataclass(frozen=True, eq=False)
class OpStep(Step):
    """Any other operator, run as it is; a mask multiplies its output. `target` and `args` are those of the graph node."""

    call: Run
    known: bool
    target: Any
    args: tuple[Any, ...]


def masked(tensor: Tensor | None, keep: Tensor | None) -> Tensor | None:
    """`tensor` with the rows of pruned units zero; `keep` float `[K]` on its device, None keeps all."""
    if tensor is None or keep is None:
        return tensor
    return tensor * expand_units(keep.to(tensor.dtype), tensor.dim(), 0)


def narrowed(step: ConvStep, outputs: Tensor | None, inputs: Tensor | None) -> ConvStep:
    """`step` that computes only the channels `outputs` from only the channels `inputs`, int64; None is all of them."""
    weight, bias = step.weight, step.bias
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    if inputs is not None:
        weight = weight.index_select(1, inputs)
    return replace(step, weight=weight, bias=bias)


def bind_torch(step: Step, keep: Tensor | None, dtype: torch.dtype) -> Run:
    """`step` as ordinary torch operators computing in `dtype`, with the mask `keep` (float `[K]`) in its weights."""
    match step:
        case ConvStep():
            return _bind_conv(step, keep, dtype)
        case LinearStep():
            weight, bias = _cast(masked(step.weight, keep), dtype), _cast(masked(step.bias, keep), dtype)
            return lambda x: activate(F.linear(x.to(dtype), weight, bias), step.activation)
        case ScaleStep():
            scale, shift = _cast(masked(step.scale, keep), dtype), _cast(masked(step.shift, keep), dtype)
            return lambda x: activate(
                torch.addcmul(expand_units(shift, x.dim(), 1), x.to(dtype), expand_units(scale, x.dim(), 1)),
                step.activation,
            )
        case OpStep():
            return _bind_op(step, keep)
    raise TypeError(f"no way to run {type(step).__name__}")


def _bind_conv(step: ConvStep, keep: Tensor | None, dtype: torch.dtype) -> Run:
    weight = _cast(masked(step.weight, keep), dtype).contiguous(memory_format=torch.channels_last)
    bias = _cast(masked(step.bias, keep), dtype)
    geometry = (step.stride, step.padding, step.dilation, step.groups)

    def run(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = F.conv2d(x.to(dtype), weight, bias, *geometry)
        return activate(y if added is None else y.add_(added), step.activation)

    return run


def _bind_op(step: OpStep, keep: Tensor | None) -> Run:
    if keep is None or step.mask_slice is None:
        return step.call
    dim = step.mask_slice.dim

    def run(*values: Any) -> Tensor:
        y = step.call(*values)
        return y * expand_units(keep.to(y.dtype), y.dim(), dim)

    return run


def activate(y: Tensor, activation: Activation | None) -> Tensor:
    """The activation of `y`, which may be overwritten."""
    if activation is None:
        return y
    if activation.target is torch.ops.aten.relu.default:
        return y.relu_()
    return activation.target(y, *activation.args)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    return tensor if tensor is None else tensor.to(dtype)
