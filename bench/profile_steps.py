"""Where an evaluation's time goes on a GPU: `python bench/profile_steps.py`.

For the workloads `full` and `late` of PreActResNet18: milliseconds of a call, then microseconds and TFLOP/s of every step of
the plan between CUDA events, medians of 5 runs without a graph; what packs a conv's filters and a norm behind its sum are part
of it. Then the kernels by total time, from torch's profiler.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import statistics
import time

import torch
from cases import _inside, case, full_masks, last_stage, late_masks
from evaluator_baselines import Ours
from torch.profiler import ProfilerActivity, profile

from onp.engine.steps import ConvStep
from onp.engine.triton_backend.engine import TritonEngine


def steps(engine: TritonEngine, keep: torch.Tensor, first: int) -> None:
    """Print what each step takes for the masks `keep` `[B, U]`, the first changed step being `first`."""
    plan, runs = engine._plan, list(engine._steps._runs)
    found: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}
    masks: dict[int, int] = {}

    def timed(index: int):
        def run(*arguments):
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            value = runs[index](*arguments)
            events[1].record()
            found.setdefault(index, []).append(events)
            # As many products as inputs differ.
            masks[index] = max(len(each.data) for each in arguments[0][:1])
            return value

        return run

    cut = max(cut for cut in engine._cuts if cut <= first)
    engine._steps._runs[:] = [timed(index) for index in range(len(runs))]
    for _ in range(5):
        engine._run(keep, cut, first, engine._downstream.unchanged(keep.cpu().numpy(), engine._base_here, first))
    torch.cuda.synchronize()
    engine._steps._runs[:] = runs
    images = sum(kept[0][plan.input].data.shape[1] for kept in engine._kept)
    for index, events in found.items():
        step = plan.steps[index]
        took = statistics.median(start.elapsed_time(end) for start, end in events) * 1e3
        line = f"{index:3} {type(step).__name__:10} x{masks[index]:<3} {took:9.0f} us"
        if isinstance(step, ConvStep):
            shape = plan.shapes[step.name] or ()
            flops = 2.0 * math.prod(shape) * step.weight[0].numel() * _inside(step, plan) * images * masks[index]
            line += f" {flops / took / 1e6:6.0f} TFLOP/s {list(step.weight.shape)} -> {list(shape)}"
            line += " pooled" if step.name == engine._steps.tail.pooled else ""
        print(line, flush=True)


def kernels(engine: TritonEngine, keep: torch.Tensor, first: int) -> None:
    cut = max(cut for cut in engine._cuts if cut <= first)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            engine._run(keep, cut, first, engine._downstream.unchanged(keep.cpu().numpy(), engine._base_here, first))
        torch.cuda.synchronize()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)[:12]
    for row in rows:
        print(f"{row.self_device_time_total / 3:9.0f} us {row.count // 3:4} x {row.key[:70]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    setting = case("preact_resnet18", "cuda", options.images)
    victim, started = setting.victim, time.monotonic()
    ours = Ours(setting)
    engine = ours.evaluator._engine
    assert isinstance(engine, TritonEngine)
    slices = [(i, step.mask_slice) for i, step in enumerate(engine._plan.steps)]
    late = min(i for i, units in slices if units and units.offset == last_stage(victim).offset)
    for name, draw, count, first in (("full", full_masks, 8, 0), ("late", late_masks, 24, late)):
        for word in ("compiled and run", "captured and replayed", "replayed", "replayed"):
            before = time.monotonic()
            ours.score(draw(victim, count))
            torch.cuda.synchronize()
            print(f"{name}, {count} masks, {word}: {1e3 * (time.monotonic() - before):.2f} ms", flush=True)
        graph = engine._graphs[next(key for key in engine._graphs if key[2] == count and key[1] == first)].graph
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        took = [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
        print(f"{name}: the graph alone {statistics.median(took):.2f} ms ({min(took):.2f} to {max(took):.2f}, n = 10)")
        with torch.no_grad():
            keep = draw(victim, count).cuda()
            steps(engine, keep, first)
            kernels(engine, keep, first)
    print(f"peak memory {torch.cuda.max_memory_allocated() >> 20} MiB, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
