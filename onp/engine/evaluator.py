"""Evaluator.score(masks): what ACC and ASR become under these masks, without ever editing the network."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.plan import Plan, build_plan
from onp.engine.scoring import Batch, Tally, TriggeredBatch
from onp.engine.torch_backend.engine import Backend, CpuEngine, Precision, choose_backend
from onp.errors import InputError
from onp.model.victim import Victim

__all__ = ["Batch", "Engine", "Evaluator", "Scores", "TriggeredBatch"]

ROWS = 256  # of the table of known masks at first; it doubles


class Engine(Protocol):
    """What runs the network for an Evaluator, for one plan, one set of images and one base mask at a time."""

    precision: str  #: "float32", "bfloat16", ...

    @property
    def cached_bytes(self) -> int:
        """Bytes the prefix cache holds now."""

    def sums(self, keep: NDArray[np.bool_], first: NDArray[np.int64]) -> Tensor:
        """What `Tally.sums` says of K masks, float64 `[K, 3, 1 + F]` on the engine's device; need not be finished there.

        `keep` bool `[K, U]`, K >= 1, rows all different; `first` int64 `[K]`: index of the first step of the plan that each
        mask changes against the base, the number of steps where it is the base.
        """

    def commit(self, keep: NDArray[np.bool_], first: int) -> None:
        """Make `keep` bool `[U]`, which changes the plan from step `first` on, the base."""


@dataclass(frozen=True)
class Scores:
    """What B masks do; all tensors are on one device, the CPU unless `score` was asked for another.

    `acc` float64 `[B]`: share of clean images classified as labelled; `acc_soft`: the mean probability of the label. `asr`
    float64 `[B, F]`: share of a family's triggered images, those of the target class left out, classified as the target;
    `asr_soft`: the mean probability of that class. `divergence` float64 `[B]`: mean KL divergence, in nats, from the unpruned
    network's probabilities to these on the clean images, at most `onp_kernels.reference.MOST_DIVERGENCE` each. `acc_count`
    int64 `[B]`, `asr_count` int64 `[B, F]`: the counts behind the shares.
    """

    acc: Tensor
    asr: Tensor
    divergence: Tensor
    acc_soft: Tensor
    asr_soft: Tensor
    acc_count: Tensor
    asr_count: Tensor


class Evaluator:
    """ACC on the clean batch and ASR on each triggered batch, for many masks.

    `backend`: "triton" (kernels for NVIDIA GPUs), "onednn" (fused CPU primitives), "torch" (ordinary operators, any device),
    "auto" the fastest that exists. `precision`: "auto" is bfloat16 where the device has matrix units for it and it agrees with
    float32 on a chunk, or float32.
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
        device = victim.device
        self.families = tuple(batch.family for batch in triggered)
        self.units = victim.units
        self.evaluations = 0
        self.seconds = 0.0
        tally = Tally(victim, clean, triggered, device)
        plan = build_plan(victim)
        self.backend = choose_backend(backend, device)
        images = torch.cat([part.to(device, torch.float32) for part in (clean.images, *(t.images for t in triggered))])
        self._engine: Engine
        if self.backend == "triton":
            from onp.engine.triton_backend.engine import CudaEngine

            self._engine = CudaEngine(plan, images, tally, precision, memory_budget, chunk)
        else:
            self._engine = CpuEngine(plan, images, tally, self.backend, precision, memory_budget, chunk)
        self._base = np.ones(self.units, dtype=bool)
        self._steps = len(plan.steps)
        self._unit_step = _first_step_of_units(plan, self.units)
        order = self._unit_step.argsort(kind="stable")
        self._order = None if (order == np.arange(self.units)).all() else order
        self._row: dict[bytes, int] = {}
        self._table = torch.zeros(ROWS, 3, 1 + len(self.families), dtype=torch.float64, device=device)
        self._counted = torch.from_numpy(tally.counted)

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def cached_bytes(self) -> int:
        """Bytes the prefix cache holds now."""
        return self._engine.cached_bytes

    def score(self, masks: Tensor, *, device: torch.device | str = "cpu") -> Scores:
        """Score `masks`, bool `[B, U]`, True = keep; B as large as the caller likes, any strides, any device.

        `device`: where the scores are wanted. On the victim's own device they may arrive while `score` has returned, as
        the results of any CUDA operator do; on the CPU they are there.
        """
        started = time.perf_counter()
        keep = self._checked(masks)
        keys = [row.tobytes() for row in np.packbits(keep, axis=1)]
        fresh: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._row and key not in fresh:
                fresh[key] = row
        if fresh:
            rows = keep[list(fresh.values())]
            self._remember(list(fresh), self._engine.sums(rows, self._first_change(rows)))
            self.evaluations += len(fresh)
        # By way of numpy, and by index_select and select below: known masks cost little but what these calls cost.
        rows_of_table = torch.from_numpy(np.array([self._row[key] for key in keys], dtype=np.int64))
        found = self._table.index_select(0, rows_of_table.to(self._table.device))
        scores = self._scores(found.to(device))
        self.seconds += time.perf_counter() - started
        return scores

    def commit(self, mask: Tensor) -> None:
        """Make `mask`, bool `[U]`, the base: masks that first differ from it at a late step reuse what comes before."""
        keep = self._checked(mask[None])[0]
        first = int(self._first_change(keep[None])[0])
        if first < self._steps:
            self._engine.commit(keep, first)
            self._base = keep.copy()

    def _checked(self, masks: Tensor) -> NDArray[np.bool_]:
        if masks.dtype != torch.bool or masks.dim() != 2 or masks.shape[1] != self.units:
            raise InputError(f"masks are {masks.dtype} {list(masks.shape)}; give bool [B, {self.units}], True = keep")
        return np.ascontiguousarray(masks.detach().cpu().numpy())

    def _first_change(self, keep: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Index of the first step that each mask `[B, U]` changes against the base; the number of steps where none."""
        different, step = keep != self._base, self._unit_step
        if self._order is not None:
            different, step = different[:, self._order], step[self._order]
        place = different.argmax(axis=1)
        return np.where(different[np.arange(len(keep)), place], step[place], self._steps)

    def _remember(self, keys: list[bytes], sums: Tensor) -> None:
        """Append to the table, which lies on the victim's device, so that nothing waits for `sums` here."""
        used = len(self._row)
        while len(self._table) < used + len(keys):
            self._table = torch.cat([self._table, torch.zeros_like(self._table)])
        self._table[used : used + len(keys)] = sums
        self._row.update(zip(keys, range(used, used + len(keys)), strict=True))

    def _scores(self, sums: Tensor) -> Scores:
        """`sums` `[B, 3, 1 + F]`, as `Tally.sums` has them."""
        hits, soft, divergence = (sums / self._counted.to(sums.device)).unbind(1)
        counts, families = sums.select(1, 0).to(torch.int64), len(self.families)
        return Scores(
            acc=hits.select(1, 0),
            asr=hits.narrow(1, 1, families),
            divergence=divergence.select(1, 0),
            acc_soft=soft.select(1, 0),
            asr_soft=soft.narrow(1, 1, families),
            acc_count=counts.select(1, 0),
            asr_count=counts.narrow(1, 1, families),
        )


def _first_step_of_units(plan: Plan, units: int) -> NDArray[np.int64]:
    first = np.full(units, len(plan.steps))
    for index, step in reversed(list(enumerate(plan.steps))):
        if step.gate is not None:
            first[step.gate.offset : step.gate.offset + step.gate.units] = index
    if (first == len(plan.steps)).any():
        raise RuntimeError("some units of the victim reach no step of the plan")
    return first
