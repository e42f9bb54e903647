"""Evaluator.score(masks): what ACC and ASR become under these masks, without ever editing the network."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp import fused_cpu
from onp.errors import InputError
from onp.plan import Plan, build_plan
from onp.prefix import PrefixCache
from onp.steps import Run, Step, bind_torch
from onp.tally import Batch, Tally, TriggeredBatch
from onp.victim import Victim
from onp.workers import run_all

__all__ = ["Batch", "Evaluator", "Scores", "TriggeredBatch"]

_log = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "onednn"]
Precision = Literal["auto", "float32", "bfloat16"]
# Values of one step of one chunk that a CPU can be expected to keep in its last-level cache, in bytes.
CPU_CHUNK_BYTES = 24 << 20
CUDA_CHUNK_BYTES = 2 << 30
AGREEMENT = 0.995


@dataclass(frozen=True)
class Scores:
    """What B masks do; all tensors are on the CPU.

    `acc` float64 `[B]`: share of clean images classified as labelled. `asr` float64 `[B, F]`: share of a family's
    triggered images, those of the target class left out, classified as the target. `acc_soft`, `asr_soft`: the mean
    probability of that class. `acc_count` int64 `[B]`, `asr_count` int64 `[B, F]`: the counts behind the shares.
    """

    acc: Tensor
    asr: Tensor
    acc_soft: Tensor
    asr_soft: Tensor
    acc_count: Tensor
    asr_count: Tensor


class Evaluator:
    """The engine: ACC on the clean batch and ASR on each triggered batch, for many masks.

    `backend`: "onednn" (fused CPU primitives), "torch" (ordinary operators, any device), "auto" the faster that exists.
    `precision`: "auto" is bfloat16 on a CPU with matrix units where it agrees with float32 on a chunk, or float32.
    `memory_budget`: bytes the prefix cache may hold. `chunk`: images that run together; None keeps them in cache.
    Everything runs on the device of the victim. Raises InputError for batches that do not fit the victim, for a family
    without an image that counts, and for a backend that cannot run here.

    After construction: `families` the names in column order, `backend` and `precision` what was chosen,
    `evaluations` masks computed so far (remembered ones do not count), `seconds` spent in `score`.
    """

    def __init__(
        self,
        victim: Victim,
        clean: Batch,
        triggered: Sequence[TriggeredBatch],
        *,
        backend: Backend = "auto",
        precision: Precision = "auto",
        memory_budget: int = 1 << 30,
        chunk: int | None = None,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk}; give the number of images to run together, at least 1")
        self._device = victim.device
        self.families = tuple(batch.family for batch in triggered)
        self.units = victim.units
        self.evaluations = 0
        self.seconds = 0.0
        self._tally = Tally(victim, clean, triggered, self._device)
        self._plan = build_plan(victim)
        self.backend = _choose_backend(backend, self._device)
        images = torch.cat(
            [part.to(self._device, torch.float32) for part in (clean.images, *(t.images for t in triggered))]
        )
        parts = -(-len(images) // (chunk or _chunk_size(self._plan, self._device)))
        self._workers = min(torch.get_num_threads(), len(images)) if self._device.type == "cpu" else 1
        if chunk is None:
            parts = -(-parts // self._workers) * self._workers
        self._workers = min(self._workers, parts)
        # Chunks of nearly equal size: a small remainder would run at a fraction of the speed.
        self._chunks = [_channels_last(part, torch.float32) for part in images.tensor_split(parts)]
        self._prefix = PrefixCache(self._plan, len(images), 4, 0)  # caches nothing: the checks below come first
        self._dead = [
            [name for name in {*before, step.name} if name not in after]
            for step, before, after in zip(self._plan.steps, self._plan.live, self._plan.live[1:], strict=False)
        ]
        self._base = np.ones(self.units, dtype=bool)
        self._unit_step = _first_step_of_units(self._plan, self.units)
        self._known: dict[bytes, NDArray[np.float64]] = {}
        self._bind_base(torch.float32)
        units = self.backend == "onednn" and fused_cpu.matrix_units()
        if precision == "bfloat16" or (precision == "auto" and units and self._bfloat16_agrees()):
            self._chunks = [_channels_last(part, torch.bfloat16) for part in self._chunks]
            self._bind_base(torch.bfloat16)
        self._prefix = PrefixCache(self._plan, len(images), self._dtype.itemsize, memory_budget)
        _log.info(
            "evaluator: %s %s on %s, %d images in %d chunks by %d workers, %d steps cached before %s",
            *(self.backend, self.precision, self._device, len(images), parts, self._workers),
            *(len(self._plan.steps), self._prefix.cuts),
        )

    def score(self, masks: Tensor) -> Scores:
        """Score `masks`, bool `[B, U]`, True = keep; B as large as the caller likes, any strides, any device."""
        started = time.perf_counter()
        keep = self._checked(masks)
        keys = [row.tobytes() for row in np.packbits(keep, axis=1)]
        fresh: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._known and key not in fresh:
                fresh[key] = row
        if fresh:
            rows = keep[list(fresh.values())]
            first = self._first_change(rows)
            sums = torch.stack([self._evaluate(row, int(step)) for row, step in zip(rows, first, strict=True)])
            self._known.update(zip(fresh, sums.cpu().numpy(), strict=True))
            self.evaluations += len(fresh)
        found = np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, 2, 1 + len(self.families)))
        scores = self._scores(found)
        self.seconds += time.perf_counter() - started
        return scores

    def commit(self, mask: Tensor) -> None:
        """Make `mask`, bool `[U]`, the base: masks that first differ from it at a late step reuse what comes before."""
        keep = self._checked(mask[None])[0]
        first = int(self._first_change(keep[None])[0])
        if first == len(self._plan.steps):
            return
        for index, step in enumerate(self._plan.steps):
            if _differ(step, keep, self._base):
                self._runs[index] = self._bind(step, keep)
        self._base = keep.copy()
        self._prefix.forget_from(first)

    @property
    def cached_bytes(self) -> int:
        """Bytes the prefix cache holds now."""
        return self._prefix.bytes

    def _checked(self, masks: Tensor) -> NDArray[np.bool_]:
        if masks.dtype != torch.bool or masks.dim() != 2 or masks.shape[1] != self.units:
            raise InputError(f"masks are {masks.dtype} {list(masks.shape)}; give bool [B, {self.units}], True = keep")
        return np.ascontiguousarray(masks.detach().cpu().numpy())

    def _first_change(self, keep: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Index of the first step that each mask `[B, U]` changes against the base; the number of steps where none."""
        return np.where(keep != self._base, self._unit_step, len(self._plan.steps)).min(
            axis=1, initial=len(self._plan.steps)
        )

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
        if self.backend == "onednn":
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

    def _scores(self, sums: NDArray[np.float64]) -> Scores:
        """`sums` `[B, 2, 1 + F]`: hits and summed probabilities of the clean batch and of every family."""
        shares = torch.from_numpy(sums / self._tally.counted)
        counts = torch.from_numpy(sums[:, 0].astype(np.int64))
        return Scores(
            acc=shares[:, 0, 0],
            asr=shares[:, 0, 1:],
            acc_soft=shares[:, 1, 0],
            asr_soft=shares[:, 1, 1:],
            acc_count=counts[:, 0],
            asr_count=counts[:, 1:],
        )


def _choose_backend(requested: str, device: torch.device) -> str:
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


def _first_step_of_units(plan: Plan, units: int) -> NDArray[np.int64]:
    first = np.full(units, len(plan.steps))
    for index, step in reversed(list(enumerate(plan.steps))):
        if step.gate is not None:
            first[step.gate.offset : step.gate.offset + step.gate.units] = index
    if (first == len(plan.steps)).any():
        raise RuntimeError("some units of the victim reach no step of the plan")
    return first
