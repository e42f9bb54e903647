"""The engine of an Evaluator on Triton kernels: B masks in one launch, and all that follows a cut point in one CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.backend import bfloat16_agrees
from onp.engine.incremental import choose_cuts
from onp.engine.plan import Plan
from onp.engine.scoring import ScoreCounter
from onp.engine.settings import EvaluatorSettings
from onp.engine.steps import bind_torch
from onp.engine.triton_backend.steps import EVERY_STEP, TritonSteps, Value
from onp_kernels.common import compiled_together
from onp_kernels.reference_conv import PROBABILITY

_log = logging.getLogger(__name__)

SAMPLE = 256  # images that show whether bfloat16 gives the labels of float32


@dataclass(frozen=True)
class _Graph:
    """A captured evaluation: it reads the masks `keep` and leaves `sums`."""

    graph: Any
    keep: Tensor
    sums: Tensor


class TritonEngine:
    """Runs the steps of a plan for many masks in one launch of each kernel.

    Values under the base mask are cached before a few steps; an evaluation starts from the last one before the first step that
    its masks change, computes once what they share (branches that none of them changes, too), and all else for all masks in
    every launch. What was needed twice is replayed from a CUDA graph, unless the plan holds operators it does not know, which
    might wait for the device.

    Args:
        plan: of the network.
        images: float32 `[N, C, H, W]` on their device.
        counter: what is summed over the logits.
        settings: those of the Evaluator. `chunk` None takes as many images as a quarter of the device's memory holds for the
            largest batch of masks, or half of what is free there or of what this process may still take.

    Attributes:
        precision: "float32" or "bfloat16", as chosen.
    """

    def __init__(self, plan: Plan, images: Tensor, counter: ScoreCounter, settings: EvaluatorSettings) -> None:
        self._plan, self._device = plan, images.device
        self._batch_sizes, precision = settings.tuning.batch_sizes, str(settings.precision)
        member = counter.member > 0
        self._columns = member.shape[1]
        self._column = torch.where(member.any(1), member.int().argmax(1), -1).int()
        self._expected, self._unpruned = counter.expected.int(), counter.base
        self._capture = _captures(plan, self._device)
        if precision == "auto":
            auto = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
            if auto:
                auto = bfloat16_agrees(label_agreement(plan, images[:SAMPLE], torch.bfloat16), settings.tuning.agreement)
            precision = "bfloat16" if auto else "float32"
        self.precision = precision
        dtype = getattr(torch, precision)
        self._steps = TritonSteps(plan, dtype)
        gated = [index for index, step in enumerate(plan.steps) if step.mask_slice is not None]
        self._last_gated = gated[-1]
        sizes = {index: plan.image_bytes(index, dtype.itemsize) for index in gated if index > 0}
        known = {index: size for index, size in sizes.items() if size is not None}
        self._cuts = (0, *choose_cuts(plan, known, len(images), settings.memory_budget))
        size = settings.chunk or _chunk_size(plan, dtype.itemsize, self._device, self._batch_sizes[-1])
        parts = -(-len(images) // size)
        nhwc = images.permute(0, 2, 3, 1).to(dtype).contiguous()
        chunks = [{plan.input: Value(part[None])} for part in nhwc.tensor_split(parts)]
        self._kept: list[dict[int, dict[str, Value]]] = [{0: values} for values in chunks]
        self._valid = {0}
        self._base = torch.ones(1, plan.units, dtype=torch.bool, device=self._device)
        self._base_here = np.ones(plan.units, dtype=bool)
        self._downstream = Downstream(plan)
        self._run_once: set[tuple[int, int, int, int]] = set()
        self._graphs: dict[tuple[int, int, int, int], _Graph] = {}
        self._fills: dict[tuple[int, int], Any] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._capture else None
        _log.info(
            "evaluator: triton %s on %s, %d images in %d chunks, %d steps cached before %s, %s",
            *(self.precision, self._device, len(images), parts, len(plan.steps), self._cuts),
            "CUDA graphs" if self._capture else "no CUDA graphs",
        )

    @property
    def cached_bytes(self) -> int:
        held = [values for kept in self._kept for cut, values in kept.items() if cut]
        data = {id(value.data): value.data for values in held for name, value in values.items() if name != self._plan.input}
        return sum(tensor.numel() * tensor.element_size() for tensor in data.values() if isinstance(tensor, Tensor))

    @torch.no_grad()
    def sums(self, keep: NDArray[np.bool_], first: NDArray[np.int64]) -> Tensor:
        order = np.argsort(-first, kind="stable")
        found = []
        with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
            for start in range(0, len(order), self._batch_sizes[-1]):
                part = order[start : start + self._batch_sizes[-1]]
                size = next(size for size in self._batch_sizes if size >= len(part))
                step = min(int(first[part].min()), self._last_gated)
                padded = keep[part[np.minimum(np.arange(size), len(part) - 1)]]
                rows = torch.from_numpy(padded).to(self._device)
                found.append(self._evaluate(rows, step, self._downstream.unchanged(padded, self._base_here, step))[: len(part)])
        sums = torch.cat(found).double()
        sums[:, 1:] /= PROBABILITY
        if (order[1:] < order[:-1]).any():
            sums = sums[torch.from_numpy(np.argsort(order)).to(self._device)]
        return sums

    def commit(self, keep: NDArray[np.bool_], first: int) -> None:
        self._base.copy_(torch.from_numpy(keep)[None])
        self._base_here = keep.copy()
        self._valid = {cut for cut in self._valid if cut <= first}

    def _evaluate(self, keep: Tensor, first: int, alike: int) -> Tensor:
        """What `ScoreCounter.sums` says, int64 `[B, 3, 1 + F]`, rows 1 and 2 in units of 1 / PROBABILITY.

        The masks change no step before `first`, and none of `alike`.
        """
        cut = max(cut for cut in self._cuts if cut <= first)
        key = (cut, first, len(keep), alike)
        if self._capture and key not in self._run_once:
            with compiled_together():
                self._compile(keep, first, alike)
        self._fill(cut)
        if not self._capture or key not in self._run_once:
            self._run_once.add(key)
            return self._run(keep, cut, first, alike)
        if key not in self._graphs:
            graph, static = torch.cuda.CUDAGraph(), keep.clone()
            with torch.cuda.graph(graph, pool=self._pool):
                sums = self._run(static, cut, first, alike)
            self._graphs[key] = _Graph(graph, static, sums)
        captured = self._graphs[key]
        captured.keep.copy_(keep)
        captured.graph.replay()
        return captured.sums.clone()

    def _run(self, keep: Tensor, cut: int, first: int, alike: int) -> Tensor:
        sums = torch.zeros(len(keep), 3, self._columns, dtype=torch.int64, device=self._device)
        start = 0
        for kept in self._kept:
            values = dict(kept[cut])
            stop = start + kept[0][self._plan.input].data.shape[1]
            self._steps.run(values, cut, first, self._base, EVERY_STEP)
            self._steps.run(values, first, len(self._plan.steps), keep, alike)
            images = slice(start, stop)
            self._steps.count(values, self._expected[images], self._column[images], self._unpruned[images], sums)
            start = stop
        return sums

    def _compile(self, keep: Tensor, first: int, alike: int) -> None:
        """Every kernel that `_evaluate` of such masks launches; what is computed here means nothing."""
        values = dict(self._kept[0][0])
        count = values[self._plan.input].data.shape[1]
        self._steps.run(values, 0, first, self._base, EVERY_STEP)
        self._steps.run(values, first, len(self._plan.steps), keep, alike)
        sums = torch.zeros(len(keep), 3, self._columns, dtype=torch.int64, device=self._device)
        self._steps.count(values, self._expected[:count], self._column[:count], self._unpruned[:count], sums)

    def _fill(self, cut: int) -> None:
        """Have the values under the base mask at `cut`, and at the cut points passed on the way from the deepest one before."""
        if cut in self._valid:
            return
        source = max(valid for valid in self._valid if valid <= cut)
        if not self._capture or (source, cut) not in self._fills:
            self._advance(source, cut)
            self._fills[source, cut] = None
        else:
            if self._fills[source, cut] is None:
                self._fills[source, cut] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._fills[source, cut], pool=self._pool):
                    self._advance(source, cut)
            self._fills[source, cut].replay()
        self._valid |= {stop for stop in self._cuts if source < stop <= cut}

    def _advance(self, source: int, cut: int) -> None:
        for kept in self._kept:
            values = dict(kept[source])
            start = source
            for stop in (stop for stop in self._cuts if source < stop <= cut):
                self._steps.run(values, start, stop, self._base, EVERY_STEP)
                if stop not in kept:
                    kept[stop] = dict(values)
                # Captured graphs read the place where the values lay first.
                for name, value in values.items():
                    place = kept[stop][name].data
                    if isinstance(place, Tensor) and place is not value.data:
                        place.copy_(value.data)
                start = stop


def label_agreement(plan: Plan, images: Tensor, dtype: torch.dtype) -> float:
    """Share of images on which these kernels in `dtype` and torch in float32 give the same label, nothing pruned.

    Args:
        plan: of the network.
        images: float32 `[N, C, H, W]` on the device of the network.
        dtype: of the kernels.
    """
    values: dict[str, Any] = {plan.input: images}
    for step, live in zip(plan.steps, plan.live[1:], strict=True):
        values[step.name] = bind_torch(step, None, torch.float32)(*[values[name] for name in step.inputs])
        values = {name: values[name] for name in live}
    logits = values[plan.output]
    labels, base = logits.argmax(1).int(), logits[:0]
    steps = TritonSteps(plan, dtype)
    nhwc = images.permute(0, 2, 3, 1)[None].to(dtype).contiguous()
    nothing_pruned = torch.ones(1, plan.units, dtype=torch.bool, device=images.device)

    def count() -> Tensor:
        values = {plan.input: Value(nhwc)}
        steps.run(values, 0, len(plan.steps), nothing_pruned, EVERY_STEP)
        sums = torch.zeros(1, 3, 1, dtype=torch.int64, device=images.device)
        steps.count(values, labels, torch.zeros_like(labels), base, sums)
        return sums

    if _captures(plan, images.device):
        with compiled_together():
            count()
    return int(count()[0, 0, 0]) / len(images)


class Downstream:
    """The steps of a plan that each group of units changes."""

    def __init__(self, plan: Plan) -> None:
        behind = [0] * len(plan.steps)  # bit j of [i]: step j reads what step i makes, perhaps by way of others
        for index in reversed(range(len(plan.steps))):
            behind[index] = 1 << index
            for reader in range(index + 1, len(plan.steps)):
                if plan.steps[index].name in plan.steps[reader].inputs:
                    behind[index] |= behind[reader]
        self._all = (1 << len(plan.steps)) - 1
        self._steps: dict[tuple[int, int], int] = {}  # by first and last (exclusive) unit, bit i for step i
        for step, steps in zip(plan.steps, behind, strict=True):
            if step.mask_slice is not None:
                units = step.mask_slice.offset, step.mask_slice.offset + step.mask_slice.units
                self._steps[units] = self._steps.get(units, 0) | steps

    def unchanged(self, keep: NDArray[np.bool_], base: NDArray[np.bool_], first: int) -> int:
        """Bit i: step i, from `first` on, gives the same under all masks `keep` `[B, U]` as under the base `[U]`."""
        changed = (keep != base).any(0)
        different = 0
        for units, steps in self._steps.items():
            if different & steps != steps and changed[units[0] : units[1]].any():
                different |= steps
        return self._all + 1 - (1 << first) & ~different


def _captures(plan: Plan, device: torch.device) -> bool:
    """Whether evaluations are captured as CUDA graphs; operators that the plan does not know might wait for the device."""
    return device.type == "cuda" and not plan.unfused


def _chunk_size(plan: Plan, value_bytes: int, device: torch.device, masks: int) -> int:
    """How many images to run together, with so many masks.

    As many as fit into the least of a quarter of the memory, half of what is free and half of what this process may still take
    (`torch.cuda.set_per_process_memory_fraction`), and as a launch can number.
    """
    outputs = [math.prod(plan.shapes[step.name] or ()) for step in plan.steps]
    memory = 1 << 30
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        memory = min(total // 4, free // 2, (int(total * share) - torch.cuda.memory_allocated(device)) // 2)
    most = (2**31 - 1) // max(*outputs, math.prod(plan.shapes[plan.input] or ()))
    return max(1, min(most, memory // (masks * plan.widest_bytes(value_bytes))))
