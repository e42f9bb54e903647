"""Masks per second of Evaluator.score against its peers, same data and same run: `python bench/evaluator.py`.

Workloads: `full`, 8 masks over all units, 5 % pruned; `late`, 24 masks over the last stage; `episode`, groups first to last,
24 masks each, the best committed. Peers have no prefix to reuse, so one mask of theirs stands for all. Counts are compared with
the hooked network's before anything is timed. `floor` is what the multiplications and the values of layers
with changed inputs take at the rate of a large matrix product and of a copy, both measured in the same run.
`curves` are masks per second against the share pruned, the number of masks in a call, and the depth of the first change.

Writes the parts it measured into bench/results/evaluator.json (parts measured before on the same machine stay) and prints
ratios; `python bench/plot_evaluator.py` makes the table and the plot of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cases
import torch
from cases import (
    PRUNED,
    Case,
    Rates,
    case,
    cpu_name,
    full_masks,
    group_masks,
    groups,
    last_stage,
    late_masks,
    masks_from,
    measured_rates,
    seconds,
    spread,
)
from evaluator_baselines import Hooks, Ours, peers
from torch import Tensor

from onp.defend.report.environment import hardware, versions
from onp.engine.plan import plan_of
from onp.files import write_atomically
from onp.model.layers import Layer
from onp.model.victim import Victim


def agree(case: Case, hooks: Hooks, candidates: list, masks: Tensor) -> None:
    """Raise where a candidate's counts differ from the hooked network's by more than near-ties explain.

    Float32 labels may differ where the two best logits (of the last mask) do by less than 1e-3; bfloat16 ones in 1 % of a
    trained network's images, and 5 % of a random one's, whose logits lie close together.
    """
    expected = hooks.score(masks)
    top = hooks.last.topk(2, 1).values
    ties = int((top[:, 0] - top[:, 1] < 1e-3).sum())
    for candidate in candidates:
        allowed = 1 + ties if candidate.precise else 1 + case.images // (100 if case.trained else 20)
        start = time.monotonic()
        found = candidate.score(masks)
        print(f"{case.name}: {candidate.__class__.__name__} answers after {time.monotonic() - start:.1f} s", flush=True)
        if (expected - found).abs().max() > allowed:
            raise AssertionError(f"counts {found.tolist()}, hooked {expected.tolist()}: more than {allowed} apart")


def episode_draws(victim: Victim, count: int) -> list[Tensor]:
    """What `count` masks keep of each group, bool [count, filters]."""
    return [torch.rand(count, members[0].units) > PRUNED for members in groups(victim)]


def episode(victim: Victim, ours: Ours, draws: list[Tensor]) -> Tensor:
    """Groups first to last, masks that keep what `draws` says; the best committed, and returned the last of them."""
    base = torch.ones(victim.units, dtype=torch.bool)
    ours.commit(base)
    for members, keep in zip(groups(victim), draws, strict=True):
        masks = group_masks(members, base, keep)
        counts = ours.score(masks)
        base = masks[int((counts[:, 0] - counts[:, 1]).argmax())]
        ours.commit(base)
    return base


def measure(case: Case, options: argparse.Namespace, rates: Rates, write: Callable[[dict[str, object]], None]) -> None:
    """Workloads and then peers of one network, written as they come: compiling a peer may take longer than there is time."""
    victim, device = case.victim, case.victim.device.type
    hooks, ours = Hooks(case), Ours(case)
    agree(case, hooks, [ours], full_masks(victim, 1))
    agree(case, hooks, [ours], late_masks(victim, 1))
    # Masks of a workload, how they are drawn, what is timed with them, and the first layer that each of its calls changes.
    calls: dict[str, tuple[int, Callable[[], Any], Callable[[Any], object], list[Layer]]] = {
        "full": (options.full_masks, lambda: full_masks(victim, options.full_masks), ours.score, [victim.layers[0]]),
        "late": (options.late_masks, lambda: late_masks(victim, options.late_masks), ours.score, [last_stage(victim)]),
        "episode": (
            options.episode_masks * len(groups(victim)),
            lambda: episode_draws(victim, options.episode_masks),
            lambda draws: episode(victim, ours, draws),
            [members[0] for members in groups(victim)],
        ),
    }
    plan, value_bytes = plan_of(victim), 4 if ours.evaluator.precision == "float32" else 2
    rows: dict[str, dict[str, Any]] = {}
    of_peers: dict[str, dict[str, float]] = {}
    about = {"images": case.images, "units": victim.units, "peers": of_peers, "workloads": rows}
    about |= {"precision": ours.evaluator.precision, "backend": ours.evaluator.backend}
    about |= {"matmul_tflops": rates.flops / 1e12, "copy_gb_per_s": rates.bytes / 1e9}
    for workload in options.workloads:
        count, draw, call, firsts = calls[workload]
        # On a GPU what runs for the first time is compiled, for the second time captured.
        seconds(call, 3 if device == "cuda" else 0, device, draw)
        if workload == "episode":
            # What is remembered of the last mask was scored behind all commits.
            draws = episode_draws(victim, options.episode_masks if device == "cuda" else 2)
            agree(case, hooks, [ours], episode(victim, ours, draws)[None])
        each = spread([value / count for value in seconds(call, options.rounds, device, draw)])
        floor = statistics.mean(rates.floor(plan, case.images, layer, value_bytes) for layer in firsts)
        rows[workload] = {"masks": count, "seconds_a_mask": each, "floor": floor, "times_faster": {}}
        said = f"{each['min']:.6f} to {each['max']:.6f}, n = {each['n']}; {1 / each['median']:.1f} masks a second"
        share = 100 * floor / each["median"]
        print(f"{case.name} {workload}: {each['median']:.6f} s a mask ({said}); floor {floor:.6f}: {share:.0f} %", flush=True)
        write(about)
    started = {"(a) hooks, float32": lambda: hooks, **peers(case)}
    for name, build in started.items():
        peer = build()
        if peer is not hooks:
            agree(case, hooks, [peer], full_masks(victim, 1))
        one = functools.partial(full_masks, victim, 1)
        seconds(peer.score, 2 if device == "cuda" else 0, device, one)
        of_peers[name] = spread(seconds(peer.score, options.peer_rounds, device, one))
        for workload, row in rows.items():
            row["times_faster"][name] = of_peers[name]["median"] / row["seconds_a_mask"]["median"]
            print(f"{case.name} {workload}: {row['times_faster'][name]:.2f} x {name}", flush=True)
        print(f"{case.name} {name}: {of_peers[name]['median']:.6f} s a mask", flush=True)
        write(about)


def curves(case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Masks per second, as [x, median, min, max], by share pruned, by masks in a call, by layers before the first change.

    The first round of the first point behind a cut fills the cache as well.
    """
    victim, device = case.victim, case.victim.device.type
    ours = Ours(case)

    def rate(draw: Callable[[], Tensor], x: float) -> list[float]:
        count = len(draw())
        seconds(ours.score, 3 if device == "cuda" else 0, device, draw)  # as in `measure`
        found = spread([count / value for value in seconds(ours.score, options.rounds, device, draw)])
        print(f"{case.name} {x}: {found['median']:.2f} masks a second", flush=True)
        return [x, found["median"], found["min"], found["max"]]

    shares = [rate(lambda share=share: full_masks(victim, 1, share), share) for share in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)]
    counts = [rate(lambda count=count: late_masks(victim, count), count) for count in (1, 2, 4, 8, 24)]
    places = [len(victim.layers) * part // 8 for part in range(8)] + [len(victim.layers) - 1]
    depths = [rate(lambda place=place: masks_from(victim, victim.layers[place], 2), place) for place in places]
    panels = {"share pruned": shares, "late masks in one call": counts, "layers before the first change": depths}
    return {"images": case.images, "masks_per_second": panels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="*", default=["preact_resnet18", "embedded", "resnet50"], help="see bench/cases.py")
    parser.add_argument("--workloads", nargs="+", default=["full", "late", "episode"], choices=["full", "late", "episode"])
    parser.add_argument("--curves", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--images", type=int, help="clean images, and as many triggered; each case has its own default")
    parser.add_argument("--full-masks", type=int, default=8)
    parser.add_argument("--late-masks", type=int, default=24)
    parser.add_argument("--episode-masks", type=int, default=24, help="for each group")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    parser.add_argument("--out", type=Path, help="default: bench/results/evaluator.json, or evaluator_cuda.json")
    options = parser.parse_args()
    if options.cpu_time:
        cases.clock = time.process_time
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch.compile warns of its own parts
    name = "evaluator.json" if options.device == "cpu" else "evaluator_cuda.json"
    out = options.out or Path(__file__).parent / "results" / name
    about = {"hardware": hardware() | {"model": cpu_name()}, "versions": versions(), "device": options.device}
    about |= {"clock": cases.clock.__name__}
    if options.device == "cuda":
        about["versions"] |= {"triton": metadata.version("triton"), "cuda": torch.version.cuda}
    before = json.loads(out.read_text()) if out.exists() else {}
    same = all(before.get(key) == value for key, value in about.items())
    document = (before if same else {"cases": {}}) | about | {"date": time.strftime("%Y-%m-%d")}
    torch.manual_seed(time.time_ns() % 2**31)
    for chosen in options.cases:
        setting = case(chosen, options.device, options.images)
        dtype = torch.float32 if Ours(setting).evaluator.precision == "float32" else torch.bfloat16
        known = document["cases"].get(chosen, {}).get("workloads", {})

        def write(found: dict[str, Any], chosen: str = chosen, known: dict[str, Any] = known) -> None:
            document["cases"][chosen] = found | {"workloads": known | found["workloads"]}
            write_atomically(out, json.dumps(document, indent=1) + "\n")

        measure(setting, options, measured_rates(options.device, dtype), write)
    if options.curves:
        document["curves"] = curves(case("preact_resnet18", options.device, options.images), options)
        write_atomically(out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
