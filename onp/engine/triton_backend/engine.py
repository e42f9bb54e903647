"""The engine of an Evaluator on Triton kernels: B masks in one launch, and all that follows a cut point in one CUDA graph."""

import contextlib
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onp.engine.plan import Plan
from onp.engine.prefix import choose_cuts
from onp.engine.scoring import Tally
from onp.engine.steps import bind_torch
from onp.engine.triton_backend.steps import EVERY_STEP, CudaSteps, Value
from onp_kernels.common import compiled_together
from onp_kernels.reference_conv import PROBABILITY

_log = logging.getLogger(__name__)

# Numbers of masks that graphs are captured for; others are filled up to the next.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Images that show whether bfloat16 gives the labels of float32, and the share of them that must agree.
SAMPLE = 256
AGREEMENT = 0.995


@dataclass(frozen=True)
class _Graph:
    """A captured evaluation: it reads the masks `keep` and leaves `sums`."""

    graph: Any
    keep: Tensor
    sums: Tensor


class CudaEngine:
    """Runs the steps of `plan` on `images` (float32 `[N, C, H, W]` on their device); the other parameters are Evaluator's.

    Values under the base mask lie at the cut points; an evaluation starts from the deepest one before the first step that its
    masks change, computes once what they share (branches that none of them changes, too), and all else for all masks in every
    launch. What was needed twice is replayed from a CUDA graph, unless the plan holds operators it does not know, which might
    wait for the device. `chunk` images run together; None takes as many as a quarter of the device's memory holds for 32 masks,
    or half of what is free there or of what this process may still take.
    """

    def __init__(self, plan: Plan, images: Tensor, tally: Tally, precision: str, memory_budget: int, chunk: int | None) -> None:
        self._plan, self._device = plan, images.device
        member = tally.member > 0
        self._columns = member.shape[1]
        self._column = torch.where(member.any(1), member.int().argmax(1), -1).int()
        self._expected, self._unpruned = tally.expected.int(), tally.base
        self._capture = self._device.type == "cuda" and not plan.unfused
        if precision == "auto":
            auto = self._device.type == "cuda" and torch.cuda.is_bf16_supported() and self._bfloat16_agrees(images[:SAMPLE])
            precision = "bfloat16" if auto else "float32"
        self.precision = precision
        dtype = getattr(torch, precision)
        self._steps = CudaSteps(plan, dtype)
        gated = [index for index, step in enumerate(plan.steps) if step.gate is not None]
        self._last_gated = gated[-1]
        sizes = {index: plan.image_bytes(index, dtype.itemsize) for index in gated if index > 0}
        known = {index: size for index, size in sizes.items() if size is not None}
        self._cuts = (0, *choose_cuts(plan, known, len(images), memory_budget))
        parts = -(-len(images) // (chunk or _chunk_size(plan, dtype.itemsize, self._device)))
        nhwc = images.permute(0, 2, 3, 1).to(dtype).contiguous()
        chunks = [{plan.input: Value(part[None])} for part in nhwc.tensor_split(parts)]
        self._kept: list[dict[int, dict[str, Value]]] = [{0: values} for values in chunks]
        self._valid = {0}
        self._base = torch.ones(1, _units(plan), dtype=torch.bool, device=self._device)
        self._base_here = np.ones(_units(plan), dtype=bool)
        self._reached = _reached(plan)
        self._seen: set[tuple[int, int, int, int]] = set()
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
            for start in range(0, len(order), BUCKETS[-1]):
                part = order[start : start + BUCKETS[-1]]
                bucket = next(size for size in BUCKETS if size >= len(part))
                step = min(int(first[part].min()), self._last_gated)
                padded = keep[part[np.minimum(np.arange(bucket), len(part) - 1)]]
                rows = torch.from_numpy(padded).to(self._device)
                found.append(self._evaluate(rows, step, self._alike(padded, step))[: len(part)])
        sums = torch.cat(found).double()
        sums[:, 1:] /= PROBABILITY
        if (order[1:] < order[:-1]).any():
            sums = sums[torch.from_numpy(np.argsort(order)).to(self._device)]
        return sums

    def commit(self, keep: NDArray[np.bool_], first: int) -> None:
        self._base.copy_(torch.from_numpy(keep)[None])
        self._base_here = keep.copy()
        self._valid = {cut for cut in self._valid if cut <= first}

    def _alike(self, keep: NDArray[np.bool_], first: int) -> int:
        """Bit i: step i, from `first` on, gives the same under all masks `[B, U]` as under the base."""
        changed = (keep != self._base_here).any(0)
        different = 0
        for units, steps in self._reached.items():
            if different & steps != steps and changed[units[0] : units[1]].any():
                different |= steps
        return (1 << len(self._plan.steps)) - (1 << first) & ~different

    def _evaluate(self, keep: Tensor, first: int, alike: int) -> Tensor:
        """What `Tally.sums` says, int64 `[B, 3, 1 + F]`, rows 1 and 2 in units of 1 / PROBABILITY.

        The masks change no step before `first`, and none of `alike`.
        """
        cut = max(cut for cut in self._cuts if cut <= first)
        key = (cut, first, len(keep), alike)
        if self._capture and key not in self._seen:
            with compiled_together():
                self._compile(keep, first, alike)
        self._fill(cut)
        if not self._capture or key not in self._seen:
            self._seen.add(key)
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

    def _bfloat16_agrees(self, images: Tensor) -> bool:
        """Whether these kernels in bfloat16 and torch in float32 give the same labels, nothing pruned."""
        values: dict[str, Any] = {self._plan.input: images}
        for step, live in zip(self._plan.steps, self._plan.live[1:], strict=True):
            values[step.name] = bind_torch(step, None, torch.float32)(*[values[name] for name in step.inputs])
            values = {name: values[name] for name in live}
        labels = values[self._plan.output].argmax(1).int()
        steps = CudaSteps(self._plan, torch.bfloat16)
        nhwc = images.permute(0, 2, 3, 1)[None].bfloat16().contiguous()
        nothing_pruned = torch.ones(1, _units(self._plan), dtype=torch.bool, device=self._device)

        def count() -> Tensor:
            values = {self._plan.input: Value(nhwc)}
            steps.run(values, 0, len(self._plan.steps), nothing_pruned, EVERY_STEP)
            sums = torch.zeros(1, 3, 1, dtype=torch.int64, device=self._device)
            steps.count(values, labels, torch.zeros_like(labels), self._unpruned[:0], sums)
            return sums

        if self._capture:
            with compiled_together():
                count()
        sums = count()
        agreement = int(sums[0, 0, 0]) / len(images)
        if agreement < AGREEMENT:
            _log.warning("bfloat16 and float32 agree on %.1f %% of labels only: computing in float32", 100 * agreement)
        return agreement >= AGREEMENT


def _reached(plan: Plan) -> dict[tuple[int, int], int]:
    """By gate (its first unit, the unit behind its last): the steps that its units change, bit i for step i."""
    behind = [0] * len(plan.steps)
    for index in reversed(range(len(plan.steps))):
        behind[index] = 1 << index
        for reader in range(index + 1, len(plan.steps)):
            if plan.steps[index].name in plan.steps[reader].inputs:
                behind[index] |= behind[reader]
    reached: dict[tuple[int, int], int] = {}
    for step, steps in zip(plan.steps, behind, strict=True):
        if step.gate is not None:
            units = step.gate.offset, step.gate.offset + step.gate.units
            reached[units] = reached.get(units, 0) | steps
    return reached


def _units(plan: Plan) -> int:
    return max(step.gate.offset + step.gate.units for step in plan.steps if step.gate is not None)


def _chunk_size(plan: Plan, value_bytes: int, device: torch.device) -> int:
    """As many images as fit with all masks at once into the least of a quarter of the memory, half of what is free and half of
    what this process may still take (`torch.cuda.set_per_process_memory_fraction`), and as a launch can number."""
    outputs = [math.prod(plan.shapes[step.name] or ()) for step in plan.steps]
    before = [plan.image_bytes(index, value_bytes) or 0 for index in range(len(plan.steps))]
    widest = max(size + value_bytes * output for size, output in zip(before, outputs, strict=True))
    memory = 1 << 30
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        memory = min(total // 4, free // 2, (int(total * share) - torch.cuda.memory_allocated(device)) // 2)
    most = (2**31 - 1) // max(*outputs, math.prod(plan.shapes[plan.input] or ()))
    return max(1, min(most, memory // (BUCKETS[-1] * widest)))
