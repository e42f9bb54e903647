"""The engine of an Evaluator in torch and oneDNN operators: chunks of images side by side, on any device torch has."""

import importlib.util
import logging
import math
import os
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.incremental import Mask, feeders, held, needed_channels, pruned_output, suffix_of
from onp.engine.plan import Plan
from onp.engine.prefix import PrefixCache
from onp.engine.scoring import Tally
from onp.engine.steps import ConvStep, Run, Step, bind_torch, narrowed
from onp.engine.torch_backend import winograd
from onp.engine.torch_backend.onednn import bind_onednn, has_bfloat16, matrix_units, missing
from onp.engine.torch_backend.tap_gemm import bind_small_map, suits
from onp.engine.torch_backend.threads import run_all
from onp.errors import InputError

_log = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "onednn", "triton"]
Precision = Literal["auto", "float32", "bfloat16"]
# Values of one step of one chunk that a CPU can be expected to keep in its last-level cache, in bytes.
CPU_CHUNK_BYTES = 24 << 20
CUDA_CHUNK_BYTES = 2 << 30
AGREEMENT = 0.995


class CpuEngine:
    """Runs the steps of `plan` on `images` (float32 `[N, C, H, W]` on their device), one chunk a worker thread.

    A mask costs the steps behind the first that it changes, without the channels that it prunes: see onp.engine.incremental.
    `backend`: "onednn" or "torch"; the other parameters are those of Evaluator. `precision` is what was chosen.
    """

    def __init__(
        self,
        plan: Plan,
        images: Tensor,
        tally: Tally,
        backend: str,
        precision: Precision,
        memory_budget: int,
        chunk: int | None,
    ) -> None:
        if precision == "bfloat16" and backend == "onednn" and not has_bfloat16():
            raise InputError(
                "oneDNN has no bfloat16 on this CPU, which lacks AVX-512; use precision float32, or the backend torch"
            )
        self._plan, self._tally, self._backend, self._device = plan, tally, backend, images.device
        self._chunks, self._workers = _chunks(plan, images, chunk, torch.float32)
        self._prefix = PrefixCache(plan, len(images), 4, 0)  # caches nothing: the checks below come first
        self._feeder = feeders(plan)
        lasting = [set(held(plan, index)) for index in range(len(plan.steps) + 1)]
        self._dead = [{*lasting[index], step.name} - lasting[index + 1] for index, step in enumerate(plan.steps)]
        self._filters: dict[int, Tensor] = {}
        self._channels: dict[int, Tensor | None] = {}  # that a feeding step computes; None: all
        gates = {index: step.gate for index, step in enumerate(plan.steps) if step.gate is not None}
        self._offsets = sorted({gate.offset for gate in gates.values()})
        self._gated = {index: self._offsets.index(gate.offset) for index, gate in gates.items()}
        units = max(gate.offset + gate.units for gate in gates.values())
        self._base = np.ones(units, dtype=bool)
        self._bind_base(torch.float32)
        fast = backend == "onednn" and matrix_units()
        if precision == "bfloat16" or (precision == "auto" and fast and self._bfloat16_agrees()):
            self._chunks, self._workers = _chunks(plan, images, chunk, torch.bfloat16)
            self._bind_base(torch.bfloat16)
        self._prefix = PrefixCache(plan, len(images), self._dtype.itemsize, memory_budget)
        _log.info(
            "evaluator: %s %s on %s, %d images in %d chunks by %d workers, %d steps cached before %s",
            *(backend, self.precision, self._device, len(images), len(self._chunks), self._workers),
            *(len(plan.steps), self._prefix.cuts),
        )

    @property
    def cached_bytes(self) -> int:
        return self._prefix.bytes

    def sums(self, keep: Mask, first: NDArray[np.int64]) -> Tensor:
        return torch.stack([self._evaluate(row, int(step)) for row, step in zip(keep, first, strict=True)])

    def commit(self, keep: Mask, first: int) -> None:
        changed = self._changed(keep)
        self._runs, self._channels = self._bound(keep, changed, first)
        self._base = keep.copy()
        self._prefix.forget_from(first)

    @torch.no_grad()
    def _evaluate(self, keep: Mask, first: int) -> Tensor:
        changed = self._changed(keep)
        todo = suffix_of(self._plan, changed, first)
        gates = [(index, self._gate(keep, index, self._channels.get(index))) for index in todo.gated]
        runs, _ = self._bound(keep, changed, todo.start)
        numbers = range(len(self._chunks))
        logits = run_all(lambda chunk: self._run_chunk(chunk, todo.start, gates, runs), numbers, self._workers)
        return self._tally.sums(torch.cat(logits))

    def _run_chunk(self, chunk: int, start: int, gates: list[tuple[int, Tensor]], runs: list[Run]) -> Tensor:
        """Logits of one chunk: the base up to step `start`, the `gates` of its last outputs, then `runs`."""
        reached, values = self._prefix.resume(chunk, start)
        if reached == 0:
            values = {self._plan.input: self._chunks[chunk]}
        for index in range(reached, start):
            self._step(index, self._runs[index], values)
            self._prefix.offer(chunk, index + 1, values)
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

    def _changed(self, keep: Mask) -> dict[int, bool]:
        """The steps that `keep` changes against the base; True where it only takes units away."""
        differs = np.logical_or.reduceat(keep != self._base, self._offsets)
        grows = np.logical_or.reduceat(keep & ~self._base, self._offsets)
        return {index: not grows[place] for index, place in self._gated.items() if differs[place]}

    def _bound(self, keep: Mask, changed: dict[int, bool], start: int) -> tuple[list[Run], dict[int, Tensor | None]]:
        """The steps as they run from `start` on under `keep`, and the channels they leave out; base runs where equal."""
        channels = dict(self._channels)
        for index in set(self._feeder.values()) & changed.keys():
            if index >= start:
                needed = needed_channels(_units(keep, self._plan.steps[index]), self._dtype.itemsize)
                channels[index] = None if needed is None else needed.to(self._device)
        stale = {index for index in changed if index >= start}
        stale |= {
            reader for reader, index in self._feeder.items() if index in stale and channels[index] is not self._channels[index]
        }
        runs = list(self._runs)
        workers = self._workers if len(stale) > 1 else 1
        bound = run_all(lambda index: self._bind(index, keep, channels), sorted(stale), workers)
        for index, run in zip(sorted(stale), bound, strict=True):
            runs[index] = run
        return runs, channels

    def _bind(self, index: int, keep: Mask, channels: dict[int, Tensor | None]) -> Run:
        step = self._plan.steps[index]
        outputs, inputs = channels.get(index), channels.get(self._feeder.get(index, -1))
        gate = None
        if step.gate is not None and not _units(keep, step).all():
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
            if suits(whole, self._dtype, shape):
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

    def _gate(self, keep: Mask, index: int, channels: Tensor | None) -> Tensor:
        """bool: which of the channels that step `index` computes stay."""
        units = torch.from_numpy(_units(keep, self._plan.steps[index]))
        return (units if channels is None else units[channels.cpu()]).to(self._device)

    def _bind_base(self, dtype: torch.dtype) -> None:
        """Everything kept, in `dtype`."""
        self._dtype, self.precision = dtype, str(dtype).removeprefix("torch.")
        self._channels = dict.fromkeys(self._feeder.values())
        self._runs = [self._bind(index, self._base, self._channels) for index in range(len(self._plan.steps))]

    def _bfloat16_agrees(self) -> bool:
        """Whether bfloat16 gives the labels of float32 on the first chunk, nothing pruned; leaves float32 bound."""
        with torch.no_grad():
            self._bind_base(torch.bfloat16)
            reduced = self._run_chunk(0, 0, [], self._runs).argmax(1)
            self._bind_base(torch.float32)
            exact = self._run_chunk(0, 0, [], self._runs).argmax(1)
        agreement = (reduced == exact).double().mean().item()
        if agreement < AGREEMENT:
            _log.warning("bfloat16 and float32 agree on %.1f %% of labels only: computing in float32", 100 * agreement)
        return agreement >= AGREEMENT


def choose_backend(requested: str, device: torch.device) -> str:
    """ "triton", "onednn" or "torch"; InputError for a backend that is not known or cannot run on `device`."""
    if requested not in ("auto", "torch", "onednn", "triton"):
        raise InputError(f"the backend {requested!r} is not known: choose auto, torch, onednn or triton")
    if requested == "torch":
        return requested
    fast = requested if requested != "auto" else "triton" if device.type == "cuda" else "onednn"
    if fast == "triton":
        problem = triton_problem(device)
    else:
        problem = f"the victim is on {device.type}" if device.type != "cpu" else missing()
    if problem is None:
        return fast
    if requested != "auto":
        raise InputError(f"the backend {requested} was asked for and cannot run: {problem}")
    _log.info("evaluator: no %s kernels, because %s", fast, problem)
    return "torch"


def triton_problem(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on `device`, None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: `pip install triton`, on Linux"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"the GPU has compute capability {major}.{minor}; the kernels need 8.0"
    # The interpreter runs the same code in NumPy: slow, for tests.
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return None if interpreted else f"the victim is on {device.type}, and the kernels are for NVIDIA GPUs"


def _chunks(plan: Plan, images: Tensor, size: int | None, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """The images in chunks of `size`, None for a good one, and how many workers to run them by."""
    parts = -(-len(images) // (size or _chunk_size(plan, images.device, dtype.itemsize)))
    workers = min(torch.get_num_threads(), len(images)) if images.device.type == "cpu" else 1
    if size is None:
        parts = -(-parts // workers) * workers
    # Chunks of nearly equal size: a small remainder would run at a fraction of the speed.
    return [_channels_last(part, dtype) for part in images.tensor_split(parts)], min(workers, parts)


def _chunk_size(plan: Plan, device: torch.device, itemsize: int) -> int:
    """As many images as keep the values of the widest step in cache (CPU) or well inside the memory (CUDA)."""
    sizes = [plan.image_bytes(index, itemsize) or 0 for index in range(len(plan.steps))]
    outputs = [itemsize * math.prod(plan.shapes[step.name] or ()) for step in plan.steps]
    widest = max(before + after for before, after in zip(sizes, outputs, strict=True))
    if device.type == "cpu":
        return min(128, max(4, CPU_CHUNK_BYTES // widest))
    return min(4096, max(16, CUDA_CHUNK_BYTES // widest))


def _channels_last(images: Tensor, dtype: torch.dtype) -> Tensor:
    # copy_ rather than contiguous(): with one channel the latter keeps strides that later operators read as NCHW.
    return torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last).copy_(images)


def _units(keep: Mask, step: Step) -> Mask:
    """The units of a step that has some."""
    assert step.gate is not None
    return keep[step.gate.offset : step.gate.offset + step.gate.units]
