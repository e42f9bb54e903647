"""The engine of an Evaluator in torch and oneDNN operators: chunks of images side by side, on any device torch has."""

import logging
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp import fused_cpu
from onp.errors import InputError
from onp.plan import Plan
from onp.prefix import PrefixCache
from onp.steps import Run, Step, bind_torch
from onp.tally import Tally
from onp.workers import run_all

_log = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "onednn"]
Precision = Literal["auto", "float32", "bfloat16"]
# Values of one step of one chunk that a CPU can be expected to keep in its last-level cache, in bytes.
CPU_CHUNK_BYTES = 24 << 20
CUDA_CHUNK_BYTES = 2 << 30
AGREEMENT = 0.995


class CpuEngine:
    """Runs the steps of `plan` on `images` (float32 `[N, C, H, W]` on their device), one chunk a worker thread.

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
        self._plan, self._tally, self._backend, self._device = plan, tally, backend, images.device
        parts = -(-len(images) // (chunk or _chunk_size(plan, self._device)))
        self._workers = min(torch.get_num_threads(), len(images)) if self._device.type == "cpu" else 1
        if chunk is None:
            parts = -(-parts // self._workers) * self._workers
        self._workers = min(self._workers, parts)
        # Chunks of nearly equal size: a small remainder would run at a fraction of the speed.
        self._chunks = [_channels_last(part, torch.float32) for part in images.tensor_split(parts)]
        self._prefix = PrefixCache(plan, len(images), 4, 0)  # caches nothing: the checks below come first
        self._dead = [
            [name for name in {*before, step.name} if name not in after]
            for step, before, after in zip(plan.steps, plan.live, plan.live[1:], strict=False)
        ]
        units = max(step.gate.offset + step.gate.units for step in plan.steps if step.gate is not None)
        self._base = np.ones(units, dtype=bool)
        self._bind_base(torch.float32)
        if precision == "bfloat16" or (
            precision == "auto" and backend == "onednn" and fused_cpu.matrix_units() and self._bfloat16_agrees()
        ):
            self._chunks = [_channels_last(part, torch.bfloat16) for part in self._chunks]
            self._bind_base(torch.bfloat16)
        self._prefix = PrefixCache(plan, len(images), self._dtype.itemsize, memory_budget)
        _log.info(
            "evaluator: %s %s on %s, %d images in %d chunks by %d workers, %d steps cached before %s",
            *(backend, self.precision, self._device, len(images), parts, self._workers),
            *(len(plan.steps), self._prefix.cuts),
        )

    @property
    def cached_bytes(self) -> int:
        return self._prefix.bytes

    def sums(self, keep: NDArray[np.bool_], first: NDArray[np.int64]) -> Tensor:
        return torch.stack([self._evaluate(row, int(step)) for row, step in zip(keep, first, strict=True)])

    def commit(self, keep: NDArray[np.bool_], first: int) -> None:
        for index, step in enumerate(self._plan.steps):
            if _differ(step, keep, self._base):
                self._runs[index] = self._bind(step, keep)
        self._base = keep.copy()
        self._prefix.forget_from(first)

    @torch.no_grad()
    def _evaluate(self, keep: NDArray[np.bool_], first: int) -> Tensor:
        runs = list(self._runs)
        for index in range(first, len(runs)):
            step = self._plan.steps[index]
            if _differ(step, keep, self._base):
                runs[index] = self._bind(step, keep)
        logits = run_all(lambda chunk: self._run_chunk(chunk, runs, first), range(len(self._chunks)), self._workers)
        return self._tally.sums(torch.cat(logits))

    def _run_chunk(self, chunk: int, runs: list[Run], first: int) -> Tensor:
        start, values = self._prefix.resume(chunk, first)
        if start == 0:
            values = {self._plan.input: self._chunks[chunk]}
        for index in range(start, len(runs)):
            if start < index <= first:
                self._prefix.offer(chunk, index, values)
            step = self._plan.steps[index]
            values[step.name] = runs[index](*[values[name] for name in step.inputs])
            for name in self._dead[index]:
                del values[name]
        return values[self._plan.output].float()

    def _bind(self, step: Step, keep: NDArray[np.bool_]) -> Run:
        units = _units(keep, step)
        gate = None if units is None or units.all() else torch.from_numpy(units).to(self._device, torch.float32)
        if self._backend == "onednn":
            shape = self._plan.shapes[step.inputs[0]] if step.inputs else None
            return fused_cpu.bind_onednn(step, gate, self._dtype, (len(self._chunks[0]), *(shape or ())))
        return bind_torch(step, gate, self._dtype)

    def _bind_base(self, dtype: torch.dtype) -> None:
        self._dtype, self.precision = dtype, str(dtype).removeprefix("torch.")
        self._runs = [self._bind(step, self._base) for step in self._plan.steps]

    def _bfloat16_agrees(self) -> bool:
        """Whether bfloat16 gives the labels of float32 on the first chunk, nothing pruned; leaves float32 bound."""
        with torch.no_grad():
            self._bind_base(torch.bfloat16)
            reduced = self._run_chunk(0, self._runs, 0).argmax(1)
            self._bind_base(torch.float32)
            exact = self._run_chunk(0, self._runs, 0).argmax(1)
        agreement = (reduced == exact).double().mean().item()
        if agreement < AGREEMENT:
            _log.warning("bfloat16 and float32 agree on %.1f %% of labels only: computing in float32", 100 * agreement)
        return agreement >= AGREEMENT


def choose_backend(requested: str, device: torch.device) -> str:
    """ "onednn" or "torch"; InputError for a backend that is not known or cannot run on `device`."""
    if requested not in ("auto", "torch", "onednn"):
        raise InputError(f"the backend {requested!r} is not known: choose auto, torch or onednn")
    problem = f"the victim is on {device.type}" if device.type != "cpu" else fused_cpu.missing()
    if requested == "onednn" and problem:
        raise InputError(f"the backend onednn was asked for and cannot run: {problem}")
    return "torch" if requested == "torch" or problem else "onednn"


def _chunk_size(plan: Plan, device: torch.device) -> int:
    """As many images as keep the values of the widest step in cache (CPU) or well inside the memory (CUDA)."""
    sizes = [plan.image_bytes(index, 4) or 0 for index in range(len(plan.steps))]
    outputs = [4 * math.prod(plan.shapes[step.name] or ()) for step in plan.steps]
    widest = max(before + after for before, after in zip(sizes, outputs, strict=True))
    if device.type == "cpu":
        return min(128, max(4, CPU_CHUNK_BYTES // widest))
    return min(4096, max(16, CUDA_CHUNK_BYTES // widest))


def _channels_last(images: Tensor, dtype: torch.dtype) -> Tensor:
    # copy_ rather than contiguous(): with one channel the latter keeps strides that later operators read as NCHW.
    return torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last).copy_(images)


def _units(keep: NDArray[np.bool_], step: Step) -> NDArray[np.bool_] | None:
    return None if step.gate is None else keep[step.gate.offset : step.gate.offset + step.gate.units]


def _differ(step: Step, keep: NDArray[np.bool_], base: NDArray[np.bool_]) -> bool:
    units, of_base = _units(keep, step), _units(base, step)
    return units is not None and of_base is not None and not np.array_equal(units, of_base)
