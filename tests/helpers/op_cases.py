"""Graphs of every awkward kind for the tests of message passing, and the comparison with float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from onp.search.message_passing.csr import Csr

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_edges(rows: int, columns: int, edges: int, rng: torch.Generator) -> Csr:
    source = torch.randint(columns, (edges,), generator=rng)
    target = torch.randint(rows, (edges,), generator=rng)
    return Csr.from_edges(source, target, rows, columns)


def skewed(rng: torch.Generator) -> Csr:
    """Row 0 owns nearly all edges, most rows none."""
    target = torch.cat([torch.zeros(3000, dtype=torch.int64), torch.randint(90, (40,), generator=rng)])
    return Csr.from_edges(torch.randint(90, (3040,), generator=rng), target, 90)


def self_loops(rng: torch.Generator) -> Csr:
    nodes = torch.arange(37)
    return Csr.from_edges(nodes, nodes, 37)


def duplicates(rng: torch.Generator) -> Csr:
    source, target = torch.randint(11, (2, 20), generator=rng)
    return Csr.from_edges(source.repeat(3), target.repeat(3), 11)


def empty(rows: int, columns: int) -> Csr:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Csr.from_edges(nothing, nothing, rows, columns)


GRAPHS: dict[str, Callable[[torch.Generator], Csr]] = {
    "random": lambda rng: random_edges(101, 101, 1200, rng),
    "rectangular": lambda rng: random_edges(17, 203, 400, rng),
    "mostly-empty-rows": lambda rng: random_edges(500, 60, 45, rng),
    "skewed": skewed,
    "self-loops": self_loops,
    "duplicates": duplicates,
    "zero-edges": lambda rng: empty(9, 5),
    "zero-nodes": lambda rng: empty(0, 0),
    "one-edge": lambda rng: random_edges(1, 1, 1, rng),
}


def assert_as_exact(actual: Tensor, plain: Tensor, exact: Tensor, longest: int, swing: float, name: str) -> None:
    """`actual` errs at most twice as much as plain torch in the same precision, plus some roundings of the largest value.

    One rounding in bfloat16, where sums are made in float32; in float32 sixteen, and more where the `longest` sum has hundreds
    of terms: the partial sums of 3,000 terms are tens of times their result. Where terms cancel, one rounding of the arguments
    moves the result by more than one of its own: by the `swing`.
    """
    assert actual.dtype == plain.dtype and actual.shape == exact.shape, name
    if exact.numel():
        roundings = 1 if actual.dtype == torch.bfloat16 else max(16, longest / 12)
        rounding = roundings * max(torch.finfo(actual.dtype).eps * float(exact.abs().max().clamp(min=1)), swing)
        allowed = 2 * float((plain.double() - exact).abs().max()) + rounding
        error = float((actual.double() - exact).abs().max())
        assert error <= allowed, (name, error, allowed)


Op = Callable[..., Tensor]


def assert_like_reference(
    graph: Csr, op: Op, plain: Op, leaves: list[Tensor], rng: torch.Generator, device: str = "cpu"
) -> None:
    """The result and every gradient of `op` against `plain` in float64, on the same fresh numbers."""

    def run(function: Op, convert: Callable[[Tensor], Tensor]) -> list[Tensor]:
        inputs = [convert(leaf.detach()).requires_grad_() for leaf in leaves]
        out = function(*inputs)
        return [t.detach().cpu() for t in (out, *torch.autograd.grad(out, inputs, convert(upstream)))]

    def rounded(t: Tensor) -> Tensor:
        return t.double() * (1 + torch.finfo(torch.float32).eps * (torch.randint(2, t.shape, generator=rng) * 2 - 1))

    with torch.no_grad():
        upstream = torch.randn(plain(*leaves).shape, generator=rng).to(leaves[0].dtype)
    found = run(op, lambda t: t.clone().to(device))
    exact = run(plain, torch.Tensor.double)
    moved = [run(plain, rounded) for _ in range(2)]
    longest = int(max([0, *graph.indptr.diff().tolist(), *graph.indices.bincount().tolist()]))
    for number, (ours, theirs, true, *others) in enumerate(zip(found, run(plain, torch.clone), exact, *moved, strict=True)):
        swing = max(float((other - true).abs().max()) for other in others) if true.numel() else 0.0
        assert_as_exact(ours, theirs, true, longest, swing, "result" if number == 0 else f"gradient {number - 1}")


def on(device: str, graph: Csr, index: str = "int64") -> Csr:
    """The graph on a device, with another type of numbers: "int32", "int64" or "wide" (see `Csr.wide`)."""
    number = torch.int32 if index == "int32" else torch.int64
    return Csr(graph.indptr.to(device, number), graph.indices.to(device, number), graph.columns, wide=index == "wide")


def mask(graph: Csr, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Seven nodes in ten are kept."""
    return torch.rand(*shape, graph.rows, generator=rng) > 0.3
