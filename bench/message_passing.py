"""Message passing against its peers, same data and same run: `python bench/message_passing.py`.

Rows are graphs of random edges; each cell is the median over rounds with its spread (5th to 95th percentile). Every result and
every gradient is checked against float64 before it is timed. `floor` is the bytes an op must move (a source row per edge, the
edges, the result) over the bandwidth of a copy of 256 MB measured in the same run; caches can beat it. `dispatch` is a call on
a graph without edges. Peers that are not installed are left out. Writes bench/results/message_passing.json and prints ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

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


clock = time.perf_counter  # or time.process_time: --cpu-time


def seconds(call: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Seconds per call, one figure a round of about 10 ms."""

    def timed(times: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(times):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / times

    timed(2)
    times = max(1, min(200, int(0.01 / timed(1))))
    return [timed(times) for _ in range(rounds)]


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
    return ops


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


def measure(ops: dict[str, Op], x: Tensor, exact: Tensor, training: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Times each op, or with `training` the gradient of its sum, after comparing what it gives with `exact`."""
    cells: dict[str, dict[str, float]] = {}
    for name, op in ops.items():

        def call(op: Op = op) -> Tensor:
            if not training:
                with torch.no_grad():
                    return op(x)
            return gradient(op, x)

        scale = float(exact.abs().max().clamp_min(1))
        torch.testing.assert_close(call().double(), exact, rtol=1e-4, atol=1e-5 * scale)
        values = sorted(seconds(call, rounds, x.device.type))
        low, high = values[len(values) // 20], values[-1 - len(values) // 20]
        cells[name] = {"median_us": 1e6 * statistics.median(values), "p5_us": 1e6 * low, "p95_us": 1e6 * high}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nodes", type=int, nargs="+", default=[64, 512, 4800, 100_000])
    parser.add_argument("--degrees", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--jobs", nargs="+", default=["sum", "mean", "max", "gatv2"], choices=["sum", "mean", "max", "gatv2"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "message_passing.json")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch.sparse and torch-sparse announce what will change
    torch.manual_seed(0)
    big = torch.randn(1 << 26, device=options.device)
    other = torch.empty_like(big)
    bandwidth = 2 * big.nbytes / statistics.median(seconds(lambda: other.copy_(big), 5, options.device))
    none = torch.zeros(0, dtype=torch.int64, device=options.device)
    nothing = Csr.from_edges(none, none, 64)
    small = torch.randn(64, 16, device=options.device)
    dispatch = statistics.median(seconds(lambda: spmm(nothing, None, small, backend="native"), options.rounds, options.device))
    rows: list[dict[str, object]] = []
    for nodes in options.nodes:
        for degree in options.degrees:
            graph = random_graph(nodes, degree, options.device)
            weight = torch.rand(graph.edges, device=options.device)
            for features in options.features:
                for copies in options.copies:
                    if nodes * degree * features * copies > 2.5e8:
                        continue  # a peer's messages would not fit
                    for job in options.jobs:
                        shape = (nodes, features) if copies == 1 else (copies, nodes, features)
                        x = torch.randn(shape, device=options.device)
                        if job == "gatv2":
                            ops, exact_op = gatv2(graph, features, options.device)
                        else:
                            ops = peers(graph, weight, job)

                            def exact_op(x: Tensor, job: str = job, graph: Csr = graph, weight: Tensor = weight) -> Tensor:
                                return reference.spmm(graph.indptr, graph.indices, weight.double(), x, job)

                        if copies > 1:
                            loops = {f"{name}, a loop": looped(op) for name, op in ops.items() if name != "onp"}
                            ops = {name: op for name, op in ops.items() if name == "onp"} | loops
                        floor = copies * (graph.edges * (4 * features + 12) + 4 * nodes * features) / bandwidth
                        for training in (False, True):
                            row: dict[str, object] = {"job": job, "pass": "forward+backward" if training else "forward"}
                            row |= {"nodes": nodes, "degree": degree, "features": features, "copies": copies}
                            if not training:
                                row["floor_us"] = 1e6 * floor
                            exact = gradient(exact_op, x.double()) if training else exact_op(x.double()).detach()
                            cells = measure(ops, x, exact, training, options.rounds)
                            rows.append(row | {"us": cells})
                            times = {name: cell["median_us"] for name, cell in cells.items()}
                            ours = times.pop("onp", float("nan"))
                            best = min(times, key=times.__getitem__, default="nothing to compare with")
                            ratio = f"{times[best] / ours:.1f} x {best}" if times else best
                            print(*list(row.values())[:6], f"onp {ours:.0f} us, {ratio}", flush=True)
    document = {"n": options.rounds, "copy_gb_per_s": bandwidth / 1e9, "dispatch_us": 1e6 * dispatch, "rows": rows}
    document |= {"date": time.strftime("%Y-%m-%d"), "isa": backends.native().cpu_isa(), "threads": torch.get_num_threads()}
    document |= {"clock": clock.__name__, "device": options.device, "hardware": hardware(), "versions": versions()}
    write_atomically(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
