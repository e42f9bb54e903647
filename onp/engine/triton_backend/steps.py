"""The steps of a plan on Triton kernels, for the values of B masks at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onp.engine.plan import Plan
from onp.engine.steps import ConvStep, MaskSlice, OpStep, ScaleStep, Step, bind_torch
from onp.engine.triton_backend.coverage import epilogue_of, is_product, tail_of
from onp_kernels.channels import Channels, kept_channels, pack_filters, scale_act
from onp_kernels.head import head, tap_means
from onp_kernels.masked_conv import Norm, masked_conv, masked_conv_norm

aten = torch.ops.aten
EVERY_STEP = -1  # as bits
# Each channel of their result comes from the same channel of their input, zeros from zeros.
CHANNELWISE = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}


@dataclass(frozen=True)
class Value:
    """What a step made, for B masks or, with a leading 1, for all of them.

    `data`: a tensor `[B|1, N, ...]`, images channels-last; or, of anything that is no tensor, a list of B or 1 such things.
    `channels`: the kept channels of each mask lie together at the front, zeros behind them; None where every one has its place.
    """

    data: Any
    channels: Channels | None = None


class TritonSteps:
    """Runs steps of `plan` in `dtype`; steps that no kernel covers run as `onp.engine.steps.bind_torch` does, masks batched.

    What a conv or linear layer computes for each mask is packed (kept channels together, none other computed) where only such
    layers, and poolings between, read it. Anything else keeps its shape and has its pruned channels zero.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.tail = tail_of(plan)
        self._packed = {step.name for step in plan.steps if self._can_be_packed(step)}
        self._norms = {index: norm for index in range(len(plan.steps)) if (norm := self._norm_after(index)) is not None}
        self._runs: list[Callable[..., Any]] = [self._bind(step, dtype) for step in plan.steps]
        self._head: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.tail.linear is not None:
            weight, bias = self.tail.linear.weight.float(), self.tail.linear.bias
            self._head = weight.contiguous(), weight.new_zeros(len(weight)) if bias is None else bias.float()

    def run(self, values: dict[str, Value], start: int, stop: int, keep: Tensor, alike: int) -> None:
        """Add what steps `start` to `stop` make of `values`, drop what nobody reads any more.

        `keep` bool `[B, U]`. `alike`: bit i says that step i gives the same under all masks: it is computed once, and stays
        unpacked, so that it can be kept for other masks.
        """
        index = start
        while index < stop:
            step = self.plan.steps[index]
            once, norm_once = bool(alike >> index & 1), bool(alike >> (index + 1) & 1)
            rows = keep[:1] if once else keep
            if index in self._norms and index + 1 < stop and once == norm_once:
                # The norm behind, which is the next step, is a second result of the conv.
                norm = self._norms[index]
                scale, shift = _gated(norm.scale, norm.shift, _of(rows, self.plan.steps[index + 1]))
                arguments = [values[name] for name in step.inputs], _of(rows, step), once
                found = self._runs[index](*arguments, norm._replace(scale=scale, shift=shift))
                names = step.name, self.plan.steps[index + 1].name
                values.update({name: value for name, value in zip(names, found, strict=True) if value is not None})
                index += 1
            elif index not in self.tail.skipped:
                values[step.name] = self._runs[index]([values[name] for name in step.inputs], _of(rows, step), once)
            index += 1
            for name in set(values) - set(self.plan.live[index]) - {self.tail.source}:
                del values[name]

    def count(self, values: dict[str, Value], expected: Tensor, column: Tensor, base: Tensor, sums: Tensor) -> None:
        """Add the counts of the logits of `values` to `sums`; arguments and units as in `onp_kernels.reference_conv.head`."""
        x = values[self.tail.source].data
        head(x.reshape(*x.shape[:2], -1, x.shape[-1]), *self._head, expected, column, base, sums)

    def _bind(self, step: Step, dtype: torch.dtype) -> Callable[[list[Value], Tensor | None, bool], Value]:
        if is_product(step, self.plan):
            return self._bind_product(step, dtype)
        activation = epilogue_of(getattr(step, "activation", None))
        if isinstance(step, ScaleStep) and activation is not None and len(self.plan.shapes[step.inputs[0]] or ()) in (1, 3):
            scale, shift = step.scale[None].float().contiguous(), step.shift[None].float().contiguous()

            def run(inputs: list[Value], keep: Tensor | None, alike: bool) -> Value:
                gated = _gated(scale, shift, keep)
                return Value(scale_act(inputs[0].data, scale=gated[0], shift=gated[1], **activation))

            return run
        return self._bind_torch(step, dtype)

    def _norm_after(self, index: int) -> Norm | None:
        """The norm that is the next step and reads what the conv `index` makes, which is not packed."""
        step, after = (*self.plan.steps[index : index + 2], None)[:2]
        if not isinstance(step, ConvStep) or not is_product(step, self.plan) or step.name in (*self._packed, self.tail.pooled):
            return None
        activation = epilogue_of(after.activation) if isinstance(after, ScaleStep) and after.inputs == (step.name,) else None
        if not isinstance(after, ScaleStep) or activation is None:
            return None
        read = step.name in self.plan.live[index + 2] or step.name == self.tail.source
        scale, shift = (part[None].float().contiguous() for part in (after.scale, after.shift))
        return Norm(scale, shift, **activation, only=not read)

    def _bind_product(self, step: Any, dtype: torch.dtype) -> Callable[..., Any]:
        """A conv or linear layer: [1, K, R, S, C] weights, and the ways to a result under a mask.

        With a norm the result is two values: the conv's, None where only the norm's is wanted, and the norm's.
        """
        rows = step.weight if isinstance(step, ConvStep) else step.weight[:, :, None, None]
        weight = rows.permute(0, 2, 3, 1)[None].to(dtype).contiguous()
        bias = weight.new_zeros(1, weight.shape[1], dtype=torch.float32)
        if step.bias is not None:
            bias = step.bias[None].float().contiguous()
        geometry = {}
        if isinstance(step, ConvStep):
            geometry = {"stride": step.stride, "padding": step.padding, "dilation": step.dilation}
        activation = epilogue_of(step.activation) or {}
        packs, pooled = step.name in self._packed, step.name == self.tail.pooled

        def run(inputs: list[Value], keep: Tensor | None, alike: bool, norm: Norm | None = None) -> Any:
            x, columns = inputs[0].data, inputs[0].channels
            residual = inputs[1].data if len(inputs) == 2 else None
            if x.dim() == 3:
                x = x[:, :, None, None]
            options = {**geometry, "inputs": None if columns is None else columns.count}
            if pooled:
                x = tap_means(x, tuple(weight.shape[2:4]), **geometry)
                residual = None if residual is None else tap_means(residual)
                options = {"inputs": options["inputs"]}
            shared = len(x) == 1 and (residual is None or len(residual) == 1)
            together = shared and keep is not None and len(keep) > 1
            kept = kept_channels(keep) if packs and keep is not None and not alike and not together else None
            w, b = weight, bias
            if kept is not None or columns is not None:
                w, b = pack_filters(weight[0], bias[0], kept, columns)
            if together:
                # All masks see the same input: one product, then what each keeps of it, in its place: to pick channels would
                # take longer than to multiply all by 0 or 1, and shorten one conv alone.
                early, late = ({}, activation) if residual is not None else (activation, {})
                y = masked_conv(x, w, b, **options, **early)
                y = scale_act(y, scale=keep, residual=residual, **late)
                if norm is not None:
                    after = {"activation": norm.activation, "low": norm.low, "high": norm.high}
                    return Value(y), Value(scale_act(y, scale=norm.scale, shift=norm.shift, **after))
            else:
                gate = None if kept is not None else keep
                outputs = None if kept is None else kept.count
                options |= {"keep": gate, "residual": residual, "outputs": outputs}
                if norm is not None:
                    found = masked_conv_norm(x, w, b, norm, **options, **activation)
                    return tuple(None if each is None else Value(each) for each in found)
                y = masked_conv(x, w, b, **options, **activation)
            return Value(y if isinstance(step, ConvStep) else y[:, :, 0, 0], kept)

        return run

    def _bind_torch(self, step: Step, dtype: torch.dtype) -> Callable[[list[Value], Tensor | None, bool], Value]:
        """`step` as torch operators on the images of all masks together; mask by mask where it reads or gives anything but one
        row an image, such as the batch size, or is an operator that the plan does not know."""
        adds, activation = isinstance(step, ConvStep) and step.adds, getattr(step, "activation", None)
        bare: Any = step
        if not isinstance(step, OpStep):
            bare = replace(step, inputs=step.inputs[:1], activation=None)  # type: ignore[call-arg]
        call = bind_torch(bare, None, dtype)
        shapes = [self.plan.shapes[name] for name in (*step.inputs, step.name)]
        whole = not any(shape in ((), None) for shape in shapes) and (not isinstance(step, OpStep) or step.known)
        channelwise = isinstance(step, OpStep) and step.target in CHANNELWISE

        def run(inputs: list[Value], keep: Tensor | None, alike: bool) -> Value:
            read = inputs[:1] if adds else inputs
            count = max((len(value.data) for value in read), default=1)
            images = max((value.data.shape[1] for value in read), default=0) if whole else 0
            if images and all(value.data.shape[1] == images for value in read):
                merged = [_channels_first(value.data.expand(count, *value.data.shape[1:]).flatten(0, 1)) for value in read]
                y = _channels_last(call(*merged)).unflatten(0, (count, images))
            else:
                parts = [call(*[_part(value.data, b) for value in read]) for b in range(count)]
                if not isinstance(parts[0], Tensor):
                    return Value(parts)
                y = torch.stack([_channels_last(part) for part in parts])
            if keep is not None and step.mask_slice is not None:
                y = torch.where(_along(keep, y, step.mask_slice), y, 0)
            if adds:
                y = y + inputs[1].data
            if activation is not None:
                y = activation.target(y, *activation.args)
            return Value(y, inputs[0].channels if channelwise else None)

        return run

    def _can_be_packed(self, step: Step) -> bool:
        """Whether every reader of `step`, poolings looked through, reduces over its channels with one of our kernels."""
        if not is_product(step, self.plan) or step.mask_slice is None or len(step.inputs) == 2 or step.name == self.plan.output:
            return False
        names = {step.name}
        for reader in self.plan.steps:
            if names.isdisjoint(reader.inputs):
                continue
            if isinstance(reader, OpStep) and reader.target in CHANNELWISE and reader.mask_slice is None:
                names.add(reader.name)
            elif not is_product(reader, self.plan) or names & set(reader.inputs[1:]) or reader is self.tail.linear:
                return False
        return names.isdisjoint({self.tail.source, self.plan.output})


def _of(keep: Tensor, step: Step) -> Tensor | None:
    """The units of `step` in masks `[B, U]`."""
    return None if step.mask_slice is None else keep[:, step.mask_slice.offset : step.mask_slice.offset + step.mask_slice.units]


def _gated(scale: Tensor, shift: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    return (scale, shift) if keep is None else (scale * keep, shift * keep)


def _part(data: Any, mask: int) -> Any:
    part = data[mask if len(data) > 1 else 0]
    return _channels_first(part) if isinstance(part, Tensor) else part


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2) if images.dim() == 4 else images


def _channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous() if images.dim() == 4 else images


def _along(keep: Tensor, y: Tensor, mask_slice: MaskSlice) -> Tensor:
    """`keep` `[B, units]` shaped to multiply `y` `[B, N, ...]` along the dimension of its units."""
    if y.dim() == 5:
        dim = {1: 4, -1: 3}[mask_slice.dim]
    else:
        dim = {1: 2, -1: y.dim() - 1}[mask_slice.dim]
    shape = [1] * y.dim()
    shape[0], shape[dim] = keep.shape
    return keep.reshape(shape)
