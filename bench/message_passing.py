"""Message passing against its peers, same data and same run: `python bench/message_passing.py`.

Rows are graphs of random edges; each cell is the median of n rounds with its spread (5th to 95th percentile). Every result and
every gradient is checked against float64 before it is timed; of results too large for that, a part: the first and the last
copy, 16 features. `floor` is the bytes an op must move (a source row per edge, the edges, the result) over the bandwidth of a
copy of 256 MB measured in the same run; caches can beat it. One node with one edge measures dispatch. Peers that are not
installed are left out, calls of peers over 2 seconds are said to be, and not repeated; a peer that fails or errs is left out
with the reason. If one of our own calls errs, the row says so, and the command fails at its end.

On a GPU calls are queued one behind the other and waited for at the end of a round, so a small graph's time is that of
launching.

Rows go into bench/results/message_passing.json (message_passing_cuda.json for a GPU) as they are finished, in place of the same
row of an earlier run: parts of the table can be taken one after the other. `bench/message_passing_table.py` prints it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from message_passing_peers import LAYERS, Op, checked_part, gradient, random_graph, workload
from torch import Tensor

from onp.defend.report.environment import hardware, versions
from onp.engine.native import native
from onp.files import write_atomically
from onp.search.message_passing.csr import Csr

JOBS = ("sum", "mean", "max", "attention", "gatv2", "sum bfloat16")
KEY = ("job", "pass", "nodes", "degree", "features", "copies")
PATIENCE = 2.0  # seconds one call may take
MEMORY = 1.5e9  # bytes of features


def timed(call: Callable[[], object], times: int, device: str, clock: Callable[[], float]) -> float:
    """Seconds per call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(times):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / times


def expected_seconds(rows: list[dict[str, Any]], row: dict[str, Any], name: str) -> float:
    """From the largest smaller row of the same kind, if there is one: time grows at least as the work does."""

    def work(r: dict[str, Any]) -> int:
        return r["nodes"] * r["degree"] * r["features"] * r["copies"]

    known = [
        (work(r), r["us"][name].get("median_us", r["us"][name].get("one_call_us")))
        for r in rows
        if (r["job"], r["pass"]) == (row["job"], row["pass"]) and work(r) < work(row) and name in r.get("us", {})
    ]
    known = [(size, us) for size, us in known if us is not None and us > 1e4]  # where dispatch no longer counts
    return 1e-6 * max(known)[1] * work(row) / max(known)[0] if known else 0.0


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, device: str, clock: Callable[[], float]) -> dict[str, Any]:
    """Figures of every call from rounds of about 10 ms, in turns, so that what else the machine does meets all of them.

    Fewer rounds, but three, where they would take over 3 s; a peer's call over PATIENCE is not repeated.
    """
    values: dict[str, list[float]] = {}
    repeat: dict[str, tuple[int, int]] = {}  # calls a round, rounds
    for name, call in calls.items():
        once = timed(call, 1, device, clock)
        if once > PATIENCE:
            values[name] = [once]
            continue
        once = timed(call, 2, device, clock)
        times = max(1, min(200, int(0.01 / once)))
        values[name], repeat[name] = [], (times, max(3, min(rounds, int(3 / (once * times)))))
    for turn in range(max((count for _, count in repeat.values()), default=0)):
        for name, (times, count) in repeat.items():
            if turn < count:
                values[name].append(timed(calls[name], times, device, clock))
    cells: dict[str, Any] = {}
    for name, found in values.items():
        if name not in repeat and name != "onp":
            cells[name] = {"skipped": f"one call took {found[0]:.1f} s", "one_call_us": 1e6 * found[0]}
            continue
        found.sort()
        low, high = found[len(found) // 20], found[-1 - len(found) // 20]
        figures = {"median_us": statistics.median(found), "p5_us": low, "p95_us": high}
        cells[name] = {"n": len(found)} | {key: 1e6 * value for key, value in figures.items()}
    return cells


def measured(
    row: dict[str, Any],
    rows: list[dict[str, Any]],
    graph: Csr,
    weight: Tensor,
    x: Tensor,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, Any]]:
    """Times each op, or with training its gradient for a random one of the result, after comparing with float64."""
    ops, exact_op = workload(row["job"], graph, weight, x)
    training = row["pass"] == "forward+backward"
    part = checked_part(row["job"], graph.edges, x)
    given = x.bfloat16() if "bfloat16" in row["job"] else x
    upstream = torch.randn_like(given)  # what an op gives has the shape of what it takes
    exact = (
        gradient(exact_op, given[part].double(), upstream[part].double())
        if training
        else exact_op(given[part].double()).detach()
    )
    scale = float(exact.abs().max().clamp_min(1))
    cells: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, (op, own) in ops.items():
        wait = expected_seconds(rows, row, name)
        if wait > PATIENCE and name != "onp":
            cells[name] = {"skipped": f"about {wait:.0f} s a call, going by smaller graphs"}
            continue

        cast = upstream.to(own.dtype)

        def call(op: Op = op, own: Tensor = own, cast: Tensor = cast) -> Tensor:
            if training:
                return gradient(op, own, cast)
            with torch.no_grad():
                return op(own)

        try:
            found = call()[part].double()
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if name == "onp":
                raise
            cells[name] = {"skipped": f"failed: {str(error).splitlines()[0]}"}
            continue
        rough = 1e-2 if "bfloat16" in row["job"] else 1e-4
        wrong = ~torch.isclose(found, exact, rtol=rough, atol=rough / 10 * scale)
        # Of two terms that float32 cannot tell apart the other one may be the largest; a score's leaky_relu may take its other
        # slope at zero, which touches all features of two nodes, and does so in PyG's layer too: about one of 10^7 does.
        allowed = 0.0
        if training and row["job"] == "max":
            allowed = max(1e-3 * wrong.numel(), 4 * row["features"])
        elif training and row["job"] in LAYERS:
            allowed = 4 * row["features"] * (1 + 1e-7 * graph.edges * wrong.numel() / row["nodes"])
        if int(wrong.sum()) > allowed:
            cells[name] = {"skipped": f"errs in {int(wrong.sum())} of {wrong.numel()} numbers"}
            continue
        calls[name] = call
    return in_turns(calls, rounds, x.device.type, clock) | cells


def copy_bandwidth(device: str, clock: Callable[[], float]) -> float:
    """Bytes read and written per second by a copy of 256 MB."""
    big = torch.randn(1 << 26, device=device)
    other = torch.empty_like(big)
    times = 20 if device == "cuda" else 1  # a launch and the wait for it must not count
    return 2 * big.nbytes / statistics.median(timed(lambda: other.copy_(big), times, device, clock) for _ in range(6))


def used_by_all() -> float:
    """Seconds that the processors have worked since the machine started, for anybody; 0 where the system does not say."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 64, 512, 4800, 100_000])
    parser.add_argument("--degrees", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--copied", type=int, default=1 << 62, help="measure graphs of more nodes without copies")
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: in bench/results")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    options = parser.parse_args()
    name = "message_passing.json" if options.device == "cpu" else f"message_passing_{options.device}.json"
    out = options.out or Path(__file__).parent / "results" / name
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch.sparse and torch-sparse announce what will change
    torch.manual_seed(0)
    machine = {"isa": native().cpu_isa(), "device": options.device, "hardware": hardware(), "versions": versions()}
    machine["hardware"].pop("threads", None)  # every row says its own
    rows: list[dict[str, Any]] = []
    if out.exists():
        found = json.loads(out.read_text())
        rows = found.pop("rows")
        if found != machine:
            raise SystemExit(f"{out} holds rows of another machine or other versions: delete it, or give another --out.")
    bandwidth = copy_bandwidth(options.device, clock)
    wrong = 0
    run = {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), "clock": clock.__name__}
    sizes = itertools.product(options.nodes, options.degrees, options.features, options.copies)
    sizes = (size for size in sizes if size[3] == 1 or size[0] <= options.copied)
    if 1 in options.nodes:
        sizes = itertools.chain([(1, 1, 16, 1)], (size for size in sizes if size[0] > 1))
    for (nodes, degree, features, copies), job, training in itertools.product(sizes, options.jobs, (False, True)):
        graph = random_graph(nodes, degree, options.device)
        weight = torch.rand(graph.edges, device=options.device)
        row: dict[str, Any] = {"job": job, "pass": "forward+backward" if training else "forward"}
        row |= {"nodes": nodes, "degree": degree, "features": features, "copies": copies} | run
        row["copy_gb_per_s"] = bandwidth / 1e9
        size = 2 if "bfloat16" in job else 4
        if not training:
            row["floor_us"] = 1e6 * copies * (graph.edges * (size * features + 12) + size * nodes * features) / bandwidth
        too_large = 4.0 * copies * nodes * features > MEMORY or (job in LAYERS and graph.edges * features > 2.5e8)
        if too_large:
            row["skipped"] = "does not fit in memory beside its peers and its check"
        else:
            x = torch.randn((nodes, features) if copies == 1 else (copies, nodes, features), device=options.device)
            start = (time.perf_counter(), used_by_all(), time.process_time())
            row["us"] = measured(row, rows, graph, weight, x, options.rounds, clock)
            wall, all_of_it, own = (
                now - then for now, then in zip((time.perf_counter(), used_by_all(), time.process_time()), start, strict=True)
            )
            row["processors_used_by_others"] = round(max(0.0, all_of_it - own) / wall, 2)
        rows = [r for r in rows if any(r[key] != row[key] for key in KEY)] + [row]
        write_atomically(out, json.dumps(machine | {"rows": rows}, indent=1) + "\n")
        print(line(row), flush=True)
        wrong += "us" in row and "median_us" not in row["us"]["onp"]
    if wrong:
        raise SystemExit(f"{wrong} rows are wrong, see above.")


def line(row: dict[str, Any]) -> str:
    """A row in short: our time, and how many times faster that is than the best of the others."""
    cells = {name: cell["median_us"] for name, cell in row.get("us", {}).items() if "median_us" in cell}
    head = " ".join(str(row[key]) for key in KEY)
    if "onp" not in cells:
        return f"{head}: {row['us']['onp']['skipped'] if 'us' in row else row['skipped']}"
    ours = cells.pop("onp")
    best = min(cells, key=cells.__getitem__, default=None)
    ratio = f"{cells[best] / ours:.2f} x {best}" if best else "nothing to compare with"
    return f"{head}: onp {ours:.0f} us, {ratio}; others used {row['processors_used_by_others']} processors"


if __name__ == "__main__":
    main()
