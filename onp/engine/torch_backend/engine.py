"""The engine of an Evaluator in torch and oneDNN operators: chunks of images side by side, on any device torch has."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.backend import Machine, bfloat16_agrees
from onp.engine.incremental import ActivationCache, changed_steps, live_values, needed_channels, producers, pruned_output
from onp.engine.plan import Plan
from onp.engine.scoring import ScoreCounter
from onp.engine.settings import EvaluatorSettings, Tuning
from onp.engine.steps import ConvStep, Run, Step, bind_torch, narrowed
from onp.engine.torch_backend import winograd
from onp.engine.torch_backend.onednn import bind_onednn
from onp.engine.torch_backend.tap_gemm import bind_small_map, suits
from onp.errors import InputError
from onp.threads import run_all

_log = logging.getLogger(__name__)

BoolArray = NDArray[np.bool_]


class TorchEngine:
    """Runs the steps of a plan chunk by chunk of images, one chunk a worker thread.

    A mask costs the steps behind the first that it changes, without the channels that it prunes: see onp.engine.incremental.

    Args:
        plan: of the network.
        images: float32 `[N, C, H, W]` on their device.
        counter: what is summed over the logits.
        settings: those of the Evaluator, with `backend` "onednn" or "torch" and `machine` set.

    Attributes:
        precision: "float32" or "bfloat16", as chosen.
    """

    def __init__(self, plan: Plan, images: Tensor, counter: ScoreCounter, settings: EvaluatorSettings) -> None:
        backend, precision, machine = settings.backend, settings.precision, settings.machine or Machine.here()
        if precision == "bfloat16" and backend == "onednn" and not machine.bfloat16:
            raise InputError(
                "oneDNN has no bfloat16 on this CPU, which lacks AVX-512; use precision float32, or the backend torch"
            )
        self._plan, self._counter, self._backend, self._device = plan, counter, backend, images.device
        self._tuning = settings.tuning
        self._chunks, self._workers = _chunks(plan, images, settings, torch.float32)
        self._cache = ActivationCache(plan, len(images), 4, 0)  # holds nothing: the checks below come first
        self._producer = producers(plan)
        lasting = [set(live_values(plan, index)) for index in range(len(plan.steps) + 1)]
        self._dead = [{*lasting[index], step.name} - lasting[index + 1] for index, step in enumerate(plan.steps)]
        self._filters: dict[int, Tensor] = {}
        self._channels: dict[int, Tensor | None] = {}  # that a producing step computes; None: all
        gates = {index: step.mask_slice for index, step in enumerate(plan.steps) if step.mask_slice is not None}
        self._offsets = sorted({gate.offset for gate in gates.values()})
        self._gated = {index: self._offsets.index(gate.offset) for index, gate in gates.items()}
        self._base = np.ones(plan.units, dtype=bool)
        self._bind_base(torch.float32)
        fast = backend == "onednn" and machine.matrix_units
        if precision == "bfloat16" or (precision == "auto" and fast and self._bfloat16_agrees()):
            self._chunks, self._workers = _chunks(plan, images, settings, torch.bfloat16)
            self._bind_base(torch.bfloat16)
        self._cache = ActivationCache(plan, len(images), self._dtype.itemsize, settings.memory_budget)
        _log.info(
            "evaluator: %s %s on %s, %d images in %d chunks by %d workers, %d steps cached before %s",
            *(backend, self.precision, self._device, len(images), len(self._chunks), self._workers),
            *(len(plan.steps), self._cache.cuts),
        )

    @property
    def cached_bytes(self) -> int:
        return self._cache.bytes

    def sums(self, keep: BoolArray, first: NDArray[np.int64]) -> Tensor:
        return torch.stack([self._evaluate(row, int(step)) for row, step in zip(keep, first, strict=True)])

    def commit(self, keep: BoolArray, first: int) -> None:
        changed = self._changed(keep)
        self._runs, self._channels = self._bound(keep, changed, first)
        self._base = keep.copy()
        self._cache.drop_after(first)

    @torch.no_grad()
    def _evaluate(self, keep: BoolArray, first: int) -> Tensor:
        changed = self._changed(keep)
        todo = changed_steps(self._plan, changed, first)
        gates = [(index, self._gate(keep, index, self._channels.get(index))) for index in todo.gated]
        runs, _ = self._bound(keep, changed, todo.start)
        numbers = range(len(self._chunks))
        logits = run_all(lambda chunk: self._run_chunk(chunk, todo.start, gates, runs), numbers, self._workers)
        return self._counter.sums(torch.cat(logits))

    def _run_chunk(self, chunk: int, start: int, gates: list[tuple[int, Tensor]], runs: list[Run]) -> Tensor:
        """Logits of one chunk: the base up to step `start`, the masks `gates` on its last outputs, then `runs`."""
        reached, values = self._cache.resume(chunk, start)
        if reached == 0:
            values = {self._plan.input: self._chunks[chunk]}
        for index in range(reached, start):
            self._step(index, self._runs[index], values)
            self._cache.offer(chunk, index + 1, values)
        for index, gate in gates:
            step = self._plan.steps[index]
            added = values[step.inputs[1]] if len(step.inputs) == 2 and isinstance(step, ConvStep) else None
            values[step.name] = pruned_output(step, values[step.name], added, gate)
        for index in range(start, len(runs)):
            self._step(index, runs[index], values)
        return values[self._plan.output].float()

    def _step(self, index: int, run: Run, values: dict[str, Any]) -> None:
        step = self._plan.steps[index]
        values[step.name] = run(*[values[name] for name in step.inputs])
        for name in self._dead[index]:
            del values[name]

    def _changed(self, keep: BoolArray) -> dict[int, bool]:
        """The steps that `keep` changes against the base; True where it only takes units away."""
        differs = np.logical_or.reduceat(keep != self._base, self._offsets)
        grows = np.logical_or.reduceat(keep & ~self._base, self._offsets)
        return {index: not grows[place] for index, place in self._gated.items() if differs[place]}

    def _bound(self, keep: BoolArray, changed: dict[int, bool], start: int) -> tuple[list[Run], dict[int, Tensor | None]]:
        """The steps as they run from `start` on under `keep`, and the channels they leave out; base runs where equal."""
        channels, lanes = dict(self._channels), self._tuning.lane_bytes // self._dtype.itemsize
        for index in set(self._producer.values()) & changed.keys():
            if index >= start:
                needed = needed_channels(_units(keep, self._plan.steps[index]), lanes)
                channels[index] = None if needed is None else needed.to(self._device)
        stale = {index for index in changed if index >= start}
        stale |= {
            reader
            for reader, index in self._producer.items()
            if index in stale and channels[index] is not self._channels[index]
        }
        runs = list(self._runs)
        workers = self._workers if len(stale) > 1 else 1
        bound = run_all(lambda index: self._bind(index, keep, channels), sorted(stale), workers)
        for index, run in zip(sorted(stale), bound, strict=True):
            runs[index] = run
        return runs, channels

    def _bind(self, index: int, keep: BoolArray, channels: dict[int, Tensor | None]) -> Run:
        step = self._plan.steps[index]
        outputs, inputs = channels.get(index), channels.get(self._producer.get(index, -1))
        gate = None
        if step.mask_slice is not None and not _units(keep, step).all():
            gate = self._gate(keep, index, outputs).float()
        shape = self._plan.shapes[step.inputs[0]] if step.inputs else None
        whole = step
        if isinstance(step, ConvStep) and (outputs is not None or inputs is not None):
            step = narrowed(step, outputs, inputs)
        if self._backend == "torch" or not shape:
            return bind_torch(step, gate, self._dtype)
        if isinstance(step, ConvStep) and isinstance(whole, ConvStep):
            if winograd.suits(step, self._dtype, shape):
                return winograd.bind_winograd(step, gate, self._filters_of(index, step))
            if suits(whole, self._dtype, shape, self._tuning.tap_gemm_products):
                return bind_small_map(step, gate, shape)
        if inputs is not None:
            shape = (len(inputs), *shape[1:])
        return bind_onednn(step, gate, self._dtype, (len(self._chunks[0]), *shape))

    def _filters_of(self, index: int, step: ConvStep) -> Tensor:
        """The filters of step `index` as `torch_backend.winograd` takes them, kept where they are all of its filters."""
        if step is not self._plan.steps[index]:
            return winograd.filters_of(step.weight)
        if index not in self._filters:
            self._filters[index] = winograd.filters_of(step.weight)
        return self._filters[index]

    def _gate(self, keep: BoolArray, index: int, channels: Tensor | None) -> Tensor:
        """bool: which of the channels that step `index` computes stay."""
        units = torch.from_numpy(_units(keep, self._plan.steps[index]))
        return (units if channels is None else units[channels.cpu()]).to(self._device)

    def _bind_base(self, dtype: torch.dtype) -> None:
        """Everything kept, in `dtype`."""
        self._dtype, self.precision = dtype, str(dtype).removeprefix("torch.")
        self._channels = dict.fromkeys(self._producer.values())
        self._runs = [self._bind(index, self._base, self._channels) for index in range(len(self._plan.steps))]

    def _bfloat16_agrees(self) -> bool:
        """Whether bfloat16 gives the labels of float32 on the first chunk, nothing pruned; leaves float32 bound."""
        with torch.no_grad():
            self._bind_base(torch.bfloat16)
            reduced = self._run_chunk(0, 0, [], self._runs).argmax(1)
            self._bind_base(torch.float32)
            exact = self._run_chunk(0, 0, [], self._runs).argmax(1)
        return bfloat16_agrees((reduced == exact).double().mean().item(), self._tuning.agreement)


def _chunks(plan: Plan, images: Tensor, settings: EvaluatorSettings, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """The images in chunks, and how many workers to run them by."""
    size = settings.chunk
    parts = -(-len(images) // (size or _chunk_size(plan, images.device, dtype.itemsize, settings.tuning)))
    workers = min(torch.get_num_threads(), len(images)) if images.device.type == "cpu" else 1
    if size is None:
        parts = -(-parts // workers) * workers
    # Chunks of nearly equal size: a small remainder would run at a fraction of the speed.
    return [_channels_last(part, dtype) for part in images.tensor_split(parts)], min(workers, parts)


def _chunk_size(plan: Plan, device: torch.device, itemsize: int, tuning: Tuning) -> int:
    """As many images as keep the values of the widest step in cache (CPU) or well inside the memory (CUDA)."""
    widest = plan.widest_bytes(itemsize)
    if device.type == "cpu":
        return min(128, max(4, tuning.cpu_chunk_bytes // widest))
    return min(4096, max(16, tuning.gpu_chunk_bytes // widest))


def _channels_last(images: Tensor, dtype: torch.dtype) -> Tensor:
    # copy_ rather than contiguous(): with one channel the latter keeps strides that later operators read as NCHW.
    return torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last).copy_(images)


def _units(keep: BoolArray, step: Step) -> BoolArray:
    """The units of a step that has some."""
    assert step.mask_slice is not None
    return keep[step.mask_slice.offset : step.mask_slice.offset + step.mask_slice.units]
