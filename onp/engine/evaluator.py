"""Evaluator.score(masks): what ACC and ASR become under these masks, without ever editing the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.backend import Machine, choose_backend
from onp.engine.mask_table import MaskTable
from onp.engine.plan import Plan, plan_of
from onp.engine.scoring import Batch, ScoreCounter, TriggeredBatch
from onp.engine.settings import EvaluatorSettings
from onp.engine.torch_backend.engine import TorchEngine
from onp.errors import InputError
from onp.model.victim import Victim


class Engine(Protocol):
    """What runs the network for an Evaluator, for one plan, one set of images and one base mask at a time."""

    precision: str  #: "float32" or "bfloat16"

    @property
    def cached_bytes(self) -> int:
        """Bytes the activation cache holds now."""

    def sums(self, keep: NDArray[np.bool_], first: NDArray[np.int64]) -> Tensor:
        """What `ScoreCounter.sums` makes of K masks; need not be finished on return.

        Args:
            keep: bool `[K, U]`, K >= 1, rows all different.
            first: int64 `[K]`, index of the first step of the plan that each mask changes against the base; the number of
                steps where it is the base.

        Returns:
            float64 `[K, 3, columns]` on the engine's device.
        """

    def commit(self, keep: NDArray[np.bool_], first: int) -> None:
        """Make `keep` bool `[U]`, which changes the plan from step `first` on, the base."""


@dataclass(frozen=True)
class Scores:
    """What B masks do; all tensors are on one device, the CPU unless `score` was asked for another."""

    acc: Tensor  #: float64 `[B]`: share of clean images classified as labelled
    asr: Tensor  #: float64 `[B, F]`: share of triggered images, those of the target class left out, classified as the target
    #: float64 `[B]`: mean KL divergence, in nats, from the unpruned network's probabilities to these on the clean images, at
    #: most `onp_kernels.reference_conv.MOST_DIVERGENCE` each
    divergence: Tensor
    acc_soft: Tensor  #: float64 `[B]`: mean probability of the label
    asr_soft: Tensor  #: float64 `[B, F]`: mean probability of the target class
    acc_count: Tensor  #: int64 `[B]`: the count behind `acc`
    asr_count: Tensor  #: int64 `[B, F]`: the counts behind `asr`
    agreement: Tensor  #: float64 `[B, A]`: share of the images of each augmented batch classified as labelled
    agreement_soft: Tensor  #: float64 `[B, A]`: mean probability of those labels


class MaskScorer(Protocol):
    """What scores masks for a search: an `Evaluator`, or one that also reads scores from elsewhere."""

    families: tuple[str, ...]  #: names of the triggered batches, in column order
    units: int  #: U, the length of a mask

    @property
    def seconds(self) -> float:
        """Spent in `score` so far."""

    @property
    def evaluations(self) -> int:
        """Masks computed so far; those found in a table do not count."""

    def score(self, masks: Tensor) -> Scores:
        """The scores of `masks`, bool `[B, U]`, True = keep, on the CPU."""

    def commit(self, mask: Tensor) -> None:
        """Make `mask`, bool `[U]`, the base that the next masks are compared with."""


class Evaluator:
    """ACC on the clean batch, ASR on each triggered batch and agreement on each augmented batch, for many masks.

    Everything runs on the device of the victim.

    Args:
        victim: the network.
        clean: images of the ACC and the divergence.
        attacks: triggered images, one batch for each family of triggers.
        augmented: augmented clean images with the labels they should keep.
        settings: how to compute.

    Attributes:
        families: names of the triggered batches, in column order.
        units: U, the length of a mask.
        backend: "triton", "onednn" or "torch".
        evaluations: masks computed so far; masks scored before do not count.
        seconds: spent in `score` so far.

    Raises:
        InputError: batches do not fit the victim, no image of a family counts, or the backend cannot run here.
    """

    def __init__(
        self,
        victim: Victim,
        clean: Batch,
        attacks: Sequence[TriggeredBatch],
        augmented: Sequence[Batch] = (),
        settings: EvaluatorSettings = EvaluatorSettings(),
    ) -> None:
        if settings.chunk is not None and settings.chunk < 1:
            raise InputError(f"chunk is {settings.chunk}; give the number of images to run together, at least 1")
        self.families = tuple(batch.family for batch in attacks)
        self.units = victim.units
        self.evaluations = 0
        self.seconds = 0.0
        counter = ScoreCounter(victim, clean, attacks, augmented)
        plan = plan_of(victim)
        machine = settings.machine or Machine.here()
        self.backend = choose_backend(settings.backend, victim.device, machine)
        settings = replace(settings, backend=self.backend, machine=machine)
        batches = (clean.images, *(batch.images for batch in attacks), *(batch.images for batch in augmented))
        images = torch.cat([part.to(victim.device, torch.float32) for part in batches])
        self._engine: Engine
        if self.backend == "triton":
            from onp.engine.triton_backend.engine import TritonEngine

            self._engine = TritonEngine(plan, images, counter, settings)
        else:
            self._engine = TorchEngine(plan, images, counter, settings)
        self._base = np.ones(self.units, dtype=bool)
        self._steps = len(plan.steps)
        self._unit_step = _first_step_of_units(plan, self.units)
        order = self._unit_step.argsort(kind="stable")
        self._order = None if (order == np.arange(self.units)).all() else order
        self._row = MaskTable[int]()  # of `_table`
        columns = len(counter.counted)
        self._table = torch.zeros(settings.tuning.table_rows, 3, columns, dtype=torch.float64, device=victim.device)
        self._counted = torch.from_numpy(counter.counted)

    @property
    def precision(self) -> str:
        """ "float32" or "bfloat16"."""
        return self._engine.precision

    @property
    def cached_bytes(self) -> int:
        """Bytes the activation cache holds now."""
        return self._engine.cached_bytes

    def score(self, masks: Tensor, *, device: torch.device | str = "cpu") -> Scores:
        """Score masks; each different mask is computed once in the life of the evaluator.

        Args:
            masks: bool `[B, U]`, True = keep; B as large as the caller likes, any strides, any device.
            device: where the scores are wanted. On the victim's own device they may arrive after `score` has returned, as the
                results of any CUDA operator do; on the CPU they are there.
        """
        started = time.perf_counter()
        keep = self._checked(masks)
        keys, rows = self._row.missing(keep)
        if rows:
            self._append([keys[row] for row in rows], self._engine.sums(keep[rows], self._first_change(keep[rows])))
            self.evaluations += len(rows)
        # By way of numpy, and by index_select and select below: for a mask in the table these calls are most of the cost.
        rows_of_table = torch.from_numpy(np.array([self._row[key] for key in keys], dtype=np.int64))
        sums = self._table.index_select(0, rows_of_table.to(self._table.device))
        scores = self._scores(sums.to(device))
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

    def _append(self, keys: list[bytes], sums: Tensor) -> None:
        """Append to the table, which lies on the victim's device, so that nothing waits for `sums` here."""
        used = len(self._row)
        while len(self._table) < used + len(keys):
            self._table = torch.cat([self._table, torch.zeros_like(self._table)])
        self._table[used : used + len(keys)] = sums
        self._row.update(zip(keys, range(used, used + len(keys)), strict=True))

    def _scores(self, sums: Tensor) -> Scores:
        """`sums` `[B, 3, 1 + F + A]`, as `ScoreCounter.sums` has them."""
        hits, soft, divergence = (sums / self._counted.to(sums.device)).unbind(1)
        counts, families = sums.select(1, 0).to(torch.int64), len(self.families)
        augmented = sums.shape[2] - 1 - families
        return Scores(
            acc=hits.select(1, 0),
            asr=hits.narrow(1, 1, families),
            divergence=divergence.select(1, 0),
            acc_soft=soft.select(1, 0),
            asr_soft=soft.narrow(1, 1, families),
            acc_count=counts.select(1, 0),
            asr_count=counts.narrow(1, 1, families),
            agreement=hits.narrow(1, 1 + families, augmented),
            agreement_soft=soft.narrow(1, 1 + families, augmented),
        )


def _first_step_of_units(plan: Plan, units: int) -> NDArray[np.int64]:
    first = np.full(units, len(plan.steps))
    for index, step in reversed(list(enumerate(plan.steps))):
        if step.mask_slice is not None:
            first[step.mask_slice.offset : step.mask_slice.offset + step.mask_slice.units] = index
    if (first == len(plan.steps)).any():
        raise RuntimeError("some units of the victim reach no step of the plan")
    return first
