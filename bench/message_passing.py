"""Message passing against its peers, same data and same run: `python bench/message_passing.py`.

Rows are graphs of random edges; each cell is the median of n rounds with its spread (5th to 95th percentile). Every result and
every gradient is checked against float64 before it is timed; of results too large for that, a part: the first and the last
copy, 16 features. `floor` is the bytes an op must move (a source row per edge, the edges, the result) over the bandwidth of a
copy of 256 MB measured in the same run; caches can beat it. One node with one edge measures dispatch. Peers that are not
installed are left out, calls of peers over 2 seconds are said to be, and not repeated.

Rows go into bench/results/message_passing.json as they are finished, in place of the same row of an earlier run: parts of the
table can be taken one after the other. `bench/message_passing_table.py` prints it.
"""

from __future__ import annotations

import argparse
import copy
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
from torch import Tensor

from onp import backend as backends
from onp.convs import GATv2Conv
from onp.csr import Csr
from onp.files import write_atomically
from onp.ops import spmm
from onp.report import hardware, versions
from onp_kernels import reference

Op = Callable[[Tensor], Tensor]
JOBS = ("sum", "mean", "max", "gatv2", "sum bfloat16")
KEY = ("job", "pass", "nodes", "degree", "features", "copies")
PATIENCE = 2.0  # seconds one call may take
CHECKED = 6e7  # numbers per edge that a float64 check may hold
MEMORY = 1.5e9  # bytes of features


def seconds(call: Callable[[], object], rounds: int, device: str, clock: Callable[[], float]) -> list[float]:
    """Seconds per call, one figure a round of about 10 ms; fewer rounds, but three, where they would take over 3 s."""

    def timed(times: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(times):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / times

    once = timed(1)
    if once > PATIENCE:
        return [once]
    once = timed(2)
    times = max(1, min(200, int(0.01 / once)))
    return [timed(times) for _ in range(max(3, min(rounds, int(3 / (once * times)))))]


def random_graph(nodes: int, degree: int, device: str) -> Csr:
    """Distinct edges with rising columns, which torch's CSR wants."""
    number = torch.randint(nodes * nodes, (nodes * degree,), generator=torch.Generator().manual_seed(0)).unique()
    graph = Csr.from_edges(number % nodes, number // nodes, nodes)
    return Csr(graph.indptr.to(device), graph.indices.to(device), nodes)


def peers(graph: Csr, weight: Tensor, reduce: str) -> dict[str, Op]:
    """Everything that can do this reduction; what may be prepared once is."""
    ops: dict[str, Op] = {"onp": lambda x: spmm(graph, weight, x, reduce, backend="native")}
    for backend in ("torch-sparse", "torch-scatter"):
        if backends.module(backend)[0] is not None:
            ops[backend] = lambda x, backend=backend: spmm(graph, weight, x, reduce, backend=backend)
    ops["torch (index_add)"] = lambda x: reference.spmm(graph.indptr, graph.indices, weight, x, reduce)
    if reduce == "sum":
        matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, weight, (graph.rows, graph.columns))
        ops["torch.sparse CSR"] = lambda x: matrix @ x
    try:
        from torch_geometric.nn import SimpleConv
    except ImportError:
        return ops
    layer, edges = SimpleConv(reduce), torch.stack((graph.indices, graph.targets()))
    return ops | {"PyG SimpleConv": lambda x: layer(x, edges, weight)}


def looped(op: Op) -> Op:
    """What a peer without copies has to do for K of them."""
    return lambda x: torch.stack([op(part) for part in x])


def gradient(op: Op, x: Tensor) -> Tensor:
    """Of the sum of what `op` gives."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(op(leaf).sum(), leaf)[0]


def gatv2(graph: Csr, features: int, device: str) -> tuple[dict[str, Op], Op]:
    """The whole layer, linear maps included: ours and PyG's with the same weights, and the reference in float64."""
    ours = GATv2Conv(features, features).to(device)
    double = copy.deepcopy(ours).double()

    def exact(x: Tensor) -> Tensor:
        source, target = (lin(x).unsqueeze(-2) for lin in (double.lin_l, double.lin_r))
        attended = reference.attention(graph.indptr, graph.indices, source, target, double.att[0], ours.negative_slope)
        return attended.squeeze(-2) + double.bias

    ops: dict[str, Op] = {"onp": lambda x: ours(graph, x)}
    try:
        from torch_geometric.nn import GATv2Conv as Theirs
    except ImportError:
        return ops, exact
    theirs = Theirs(features, features, add_self_loops=False).to(device)
    theirs.load_state_dict(ours.state_dict())
    edges = torch.stack((graph.indices, graph.targets()))
    return ops | {"PyG GATv2Conv": lambda x: theirs(x, edges)}, exact


def workload(job: str, graph: Csr, weight: Tensor, x: Tensor) -> tuple[dict[str, tuple[Op, Tensor]], Op]:
    """The implementations with their inputs, and the op on float64."""
    if job == "gatv2":
        ops, exact = gatv2(graph, x.shape[-1], x.device.type)
    else:
        reduce = job.split()[0]
        ops = peers(graph, weight, reduce)

        def exact(x: Tensor) -> Tensor:
            return reference.spmm(graph.indptr, graph.indices, weight.double(), x, reduce)

    if job == "sum bfloat16":
        return {"onp": (ops["onp"], x.bfloat16()), "onp, float32": (ops["onp"], x.bfloat16().float())}, exact
    alone = {name: op for name, op in ops.items() if name == "onp" or x.dim() == 2}
    loops = {f"{name}, a loop": looped(op) for name, op in ops.items() if name not in alone}
    return {name: (op, x) for name, op in (alone | loops).items()}, exact


def checked_part(job: str, edges: int, x: Tensor) -> tuple[Any, ...]:
    """What of a tensor like x is compared with float64: all of it, or as much as memory holds."""
    copies: Any = [0, -1] if x.dim() == 3 and edges * x[:, 0].numel() > CHECKED else slice(None)
    large = edges * x.shape[-1] * (1 if x.dim() == 2 else len(x[copies])) > CHECKED
    features = slice(16) if large and job != "gatv2" else slice(None)  # the features of attention depend on each other
    return (copies, slice(None), features) if x.dim() == 3 else (slice(None), features)


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


def cell_of(call: Callable[[], Tensor], rounds: int, device: str, clock: Callable[[], float], ours: bool) -> dict[str, Any]:
    values = sorted(seconds(call, rounds, device, clock))
    if values[0] > PATIENCE and not ours:
        return {"skipped": f"one call took {values[0]:.1f} s", "one_call_us": 1e6 * values[0]}
    low, high = values[len(values) // 20], values[-1 - len(values) // 20]
    figures = {"median_us": statistics.median(values), "p5_us": low, "p95_us": high}
    return {"n": len(values)} | {name: 1e6 * value for name, value in figures.items()}


def measured(
    row: dict[str, Any],
    rows: list[dict[str, Any]],
    graph: Csr,
    weight: Tensor,
    x: Tensor,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, Any]]:
    """Times each op, or with training the gradient of its sum, after comparing what it gives with float64."""
    ops, exact_op = workload(row["job"], graph, weight, x)
    training = row["pass"] == "forward+backward"
    part = checked_part(row["job"], graph.edges, x)
    given = x.bfloat16() if "bfloat16" in row["job"] else x
    exact = gradient(exact_op, given[part].double()) if training else exact_op(given[part].double()).detach()
    scale = float(exact.abs().max().clamp_min(1))
    cells: dict[str, dict[str, Any]] = {}
    for name, (op, own) in ops.items():
        wait = expected_seconds(rows, row, name)
        if wait > PATIENCE and name != "onp":
            cells[name] = {"skipped": f"about {wait:.0f} s a call, going by smaller graphs"}
            continue

        def call(op: Op = op, own: Tensor = own) -> Tensor:
            if training:
                return gradient(op, own)
            with torch.no_grad():
                return op(own)

        rough = 1e-2 if "bfloat16" in row["job"] else 1e-4
        wrong = ~torch.isclose(call()[part].double(), exact, rtol=rough, atol=rough / 10 * scale)
        # Of two terms that float32 cannot tell apart the other one may be the largest, and get the gradient.
        allowed = 1e-4 * wrong.numel() if training and row["job"] == "max" else 0
        if int(wrong.sum()) > allowed:
            raise SystemExit(f"{name} errs in {int(wrong.sum())} of {wrong.numel()} numbers: {row}")
        cells[name] = cell_of(call, rounds, x.device.type, clock, name == "onp")
    return cells


def copy_bandwidth(device: str, clock: Callable[[], float]) -> float:
    """Bytes read and written per second by a copy of 256 MB."""
    big = torch.randn(1 << 26, device=device)
    other = torch.empty_like(big)
    return 2 * big.nbytes / statistics.median(seconds(lambda: other.copy_(big), 5, device, clock))


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
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "message_passing.json")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch.sparse and torch-sparse announce what will change
    torch.manual_seed(0)
    machine = {"isa": backends.native().cpu_isa(), "device": options.device, "hardware": hardware(), "versions": versions()}
    machine["hardware"].pop("threads", None)  # every row says its own
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        found = json.loads(options.out.read_text())
        rows = found.pop("rows")
        if found != machine:
            raise SystemExit(
                f"{options.out} holds rows of another machine or other versions: delete it, or give another --out."
            )
    bandwidth = copy_bandwidth(options.device, clock)
    run = {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), "clock": clock.__name__}
    sizes = itertools.product(options.nodes, options.degrees, options.features, options.copies)
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
        too_large = 4.0 * copies * nodes * features > MEMORY or (job == "gatv2" and graph.edges * features > 2.5e8)
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
        write_atomically(options.out, json.dumps(machine | {"rows": rows}, indent=1) + "\n")
        print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row in short: our time, and how many times faster that is than the best of the others."""
    cells = {name: cell["median_us"] for name, cell in row.get("us", {}).items() if "median_us" in cell}
    head = " ".join(str(row[key]) for key in KEY)
    if "onp" not in cells:
        return f"{head}: {row['skipped']}"
    ours = cells.pop("onp")
    best = min(cells, key=cells.__getitem__, default=None)
    ratio = f"{cells[best] / ours:.2f} x {best}" if best else "nothing to compare with"
    return f"{head}: onp {ours:.0f} us, {ratio}; others used {row['processors_used_by_others']} processors"


if __name__ == "__main__":
    main()
