import logging
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from onp import backend as backends
from onp.csr import Csr
from onp.errors import InputError
from onp.ops import attention, edge_softmax, spmm
from onp_kernels import reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PEERS = [peer for peer in ("torch-sparse", "torch-scatter") if backends.module(peer)[0] is not None]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory from torch.empty holds NaN, so an output element that nobody wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_backend() -> Iterator[None]:
    """Forgets what the backend module has found and chosen, before and after."""
    for cached in (backends.module, backends.choose):
        cached.cache_clear()
    yield
    for cached in (backends.module, backends.choose):
        cached.cache_clear()


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


def assert_as_exact(actual: Tensor, plain: Tensor, exact: Tensor, name: str = "") -> None:
    """`actual` errs at most twice as much as plain torch in the same precision, plus some roundings of the largest value.

    One rounding in bfloat16, where sums are made in float32; sixteen in float32: torch adds a gradient of all edges pairwise.
    """
    assert actual.dtype == plain.dtype and actual.shape == exact.shape, name
    if exact.numel():
        roundings = 1 if actual.dtype == torch.bfloat16 else 16
        rounding = roundings * torch.finfo(actual.dtype).eps * exact.abs().max().clamp(min=1)
        allowed = 2 * (plain.double() - exact).abs().max() + rounding
        assert ((actual.double() - exact).abs() <= allowed).all(), (name, float((actual.double() - exact).abs().max()), allowed)


Op = Callable[..., Tensor]


def assert_like_reference(
    graph: Csr, op: Op, plain: Op, leaves: list[Tensor], rng: torch.Generator, device: str = "cpu"
) -> None:
    """The result and every gradient of `op` against `plain` in float64, on the same fresh numbers."""

    def run(function: Op, convert: Callable[[Tensor], Tensor]) -> list[Tensor]:
        inputs = [convert(leaf.detach()).requires_grad_() for leaf in leaves]
        out = function(*inputs)
        return [t.cpu() for t in (out, *torch.autograd.grad(out, inputs, convert(upstream)))]

    with torch.no_grad():
        upstream = torch.randn(plain(*leaves).shape, generator=rng).to(leaves[0].dtype)
    found = run(op, lambda t: t.clone().to(device))
    for number, triple in enumerate(zip(found, run(plain, torch.clone), run(plain, torch.Tensor.double), strict=True)):
        assert_as_exact(*triple, name="result" if number == 0 else f"gradient {number - 1}")


def on(device: str, graph: Csr, index: torch.dtype = torch.int64) -> Csr:
    return Csr(graph.indptr.to(device, index), graph.indices.to(device, index), graph.columns)


def mask(graph: Csr, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.rand(*shape, graph.rows, generator=rng) > 0.3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", GRAPHS)
def test_spmm(name: str, reduce: str, index: torch.dtype, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    moved = on(device, graph, index)
    for features, weighted in ((0, False), (1, True), (7, False), (32, True), (45, True), (150, False)):
        x = torch.randn(graph.columns, features, generator=rng)
        leaves = [x, torch.randn(graph.edges, generator=rng)] if weighted else [x]

        def native(x: Tensor, weight: Tensor | None = None) -> Tensor:
            return spmm(moved, weight, x, reduce, backend="native")

        def plain(x: Tensor, weight: Tensor | None = None) -> Tensor:
            return reference.spmm(graph.indptr, graph.indices, weight, x, reduce)

        assert_like_reference(graph, native, plain, leaves, rng, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("batched", ["x", "weight", "keep", "x-weight-keep", "nothing"])
def test_copies_and_pruned_nodes(batched: str, reduce: str, dtype: torch.dtype, device: str, rng: torch.Generator):
    graph = random_edges(40, 40, 300, rng)
    moved = on(device, graph)
    shapes = {name: (6,) if name in batched else () for name in ("x", "weight", "keep")}
    keep = mask(graph, shapes["keep"], rng)
    x = torch.randn(*shapes["x"], 40, 35, generator=rng).to(dtype)
    weight = torch.randn(*shapes["weight"], graph.edges, generator=rng).to(dtype)

    def native(x: Tensor, weight: Tensor) -> Tensor:
        return spmm(moved, weight, x, reduce, keep.to(device), backend="native")

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return reference.spmm(graph.indptr, graph.indices, weight, x, reduce, keep)

    assert_like_reference(graph, native, plain, [x, weight], rng, device)


def test_what_a_pruned_node_holds_reaches_nobody(rng: torch.Generator):
    graph, keep = random_edges(20, 20, 100, rng), torch.arange(20) % 3 > 0
    x = torch.randn(20, 8, generator=rng)
    poisoned = torch.where(keep[:, None], x, torch.nan)
    for reduce in ("sum", "mean", "max"):
        out = spmm(graph, None, poisoned, reduce, keep)
        assert torch.equal(out, spmm(graph, None, x, reduce, keep)) and not out[~keep].any()
    heads, att = poisoned[:, None], torch.randn(1, 8, generator=rng)
    out = attention(graph, heads, x[:, None], att, keep=keep)
    assert torch.equal(out, attention(graph, x[:, None], x[:, None], att, keep=keep)) and not out[~keep].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batched", [False, True], ids=["one", "copies"])
@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "rectangular"])
def test_edge_softmax(name: str, batched: bool, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    if graph.rows != graph.columns:
        graph = Csr(graph.indptr, graph.indices % max(graph.rows, 1), graph.rows)
    moved, copies = on(device, graph), (3,) if batched else ()
    keep = mask(graph, copies, rng)
    for heads, left in ((1, None), (3, keep)):
        score = 4 * torch.randn(*copies, graph.edges, heads, generator=rng)
        found = edge_softmax(moved, score.to(device), None if left is None else left.to(device), backend="native").cpu()
        total = torch.zeros(*copies, graph.rows, heads).index_add(-2, graph.targets(), found)
        assert ((total - 1).abs() < 1e-5).logical_or(total == 0).all()

        def native(score: Tensor, left: Tensor | None = left) -> Tensor:
            return edge_softmax(moved, score, None if left is None else left.to(device), backend="native")

        def plain(score: Tensor, left: Tensor | None = left) -> Tensor:
            return reference.edge_softmax(graph.indptr, graph.indices, score, left)

        assert_like_reference(graph, native, plain, [score], rng, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("name", GRAPHS)
def test_attention(name: str, index: torch.dtype, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    moved = on(device, graph, index)
    for heads, channels, copies in ((1, 1, ()), (3, 7, ()), (2, 33, (3,)), (1, 150, ())):
        keep = mask(graph, copies, rng) if copies and graph.rows == graph.columns else None
        source = torch.randn(graph.columns, heads, channels, generator=rng)
        target = torch.randn(*copies, graph.rows, heads, channels, generator=rng)
        att = torch.randn(heads, channels, generator=rng)

        def native(*inputs: Tensor, keep: Tensor | None = keep) -> Tensor:
            return attention(moved, *inputs, 0.1, None if keep is None else keep.to(device), backend="native")

        def plain(*inputs: Tensor, keep: Tensor | None = keep) -> Tensor:
            return reference.attention(graph.indptr, graph.indices, *inputs, 0.1, keep)

        assert_like_reference(graph, native, plain, [source, target, att], rng, device)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_in_bfloat16(device: str, rng: torch.Generator):
    graph = random_edges(60, 60, 500, rng)
    source, target, att = (torch.randn(*shape, generator=rng).bfloat16() for shape in ((60, 2, 24), (60, 2, 24), (2, 24)))
    exact = reference.attention(graph.indptr, graph.indices, source.double(), target.double(), att.double())
    plain = reference.attention(graph.indptr, graph.indices, source, target, att)
    moved = (source.to(device), target.to(device), att.to(device))
    assert_as_exact(attention(on(device, graph), *moved, backend="native").cpu(), plain, exact)


def test_max_of_equal_terms_takes_the_first_and_a_nan_wins():
    graph = Csr.from_edges(torch.tensor([1, 2, 0]), torch.tensor([0, 0, 0]), 3)
    for backend in ("native", "torch"):
        x = torch.tensor([[1.0], [5.0], [5.0]]).requires_grad_()
        out = spmm(graph, None, x, "max", backend=backend)
        assert out.tolist() == [[5.0], [0.0], [0.0]]
        assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0.0], [1.0], [0.0]]
        assert spmm(graph, None, torch.tensor([[torch.nan], [5.0], [6.0]]), "max", backend=backend)[0].isnan().all()


@pytest.mark.parametrize("layout", ["column-slice", "row-slice", "transposed", "expanded"])
def test_strided_features(layout: str, rng: torch.Generator):
    graph = random_edges(50, 50, 300, rng)
    wide = torch.randn(100, 100, generator=rng)
    x = {
        "column-slice": wide[:50, 3:36],
        "row-slice": wide[::2, :20],
        "transposed": wide[:40, :50].T,
        "expanded": wide[:1, :9].expand(50, 9),
    }[layout]
    weight = torch.rand(2 * 300, generator=rng)[::2]
    assert not x.is_contiguous()
    for reduce in ("sum", "mean", "max"):
        assert torch.equal(spmm(graph, weight, x, reduce), spmm(graph, weight.contiguous(), x.contiguous(), reduce))


def test_gradcheck_in_double(rng: torch.Generator):
    graph, keep = random_edges(7, 7, 16, rng), torch.arange(7) != 3
    double = {"dtype": torch.float64, "generator": rng, "requires_grad": True}
    weight, x, score = torch.randn(16, **double), torch.randn(2, 7, 3, **double), torch.randn(16, 2, **double)
    for reduce in ("sum", "mean", "max"):
        assert torch.autograd.gradcheck(lambda w, x, reduce=reduce: spmm(graph, w, x, reduce, keep), (weight, x))
    assert torch.autograd.gradcheck(lambda s: edge_softmax(graph, s, keep), (score,))
    parts = (torch.randn(7, 2, 3, **double), torch.randn(7, 2, 3, **double), torch.randn(2, 3, **double))
    assert torch.autograd.gradcheck(lambda *t: attention(graph, *t, 0.2, keep), parts)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_every_time(device: str, rng: torch.Generator):
    """Also with threads: this graph is large enough to be cut, and row 0 is longer than any fair part."""
    target = torch.cat([torch.zeros(30_000, dtype=torch.int64), torch.randint(3000, (30_000,), generator=rng)])
    graph = on(device, Csr.from_edges(torch.randint(3000, (60_000,), generator=rng), target, 3000))
    x = torch.randn(3000, 40, generator=rng).to(device).requires_grad_()
    weight = torch.randn(60_000, generator=rng).to(device).requires_grad_()
    att = torch.randn(1, 40, generator=rng).to(device).requires_grad_()

    def everything() -> list[Tensor]:
        outs = [spmm(graph, weight, x, reduce, backend="native") for reduce in ("sum", "mean", "max")]
        outs.append(attention(graph, x[:, None], x[:, None], att, backend="native"))
        return [*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), (x, weight, att))]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = everything()
        torch.set_num_threads(4)
        for _ in range(2):
            assert all((again - once).abs().max() == 0 for again, once in zip(everything(), first, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", PEERS)
def test_peers_as_backends(backend: str, rng: torch.Generator):
    graph = random_edges(30, 30, 200, rng)
    keep = mask(graph, (2,), rng)
    x, weight = torch.randn(2, 30, 5, generator=rng), torch.randn(graph.edges, generator=rng)
    for reduce in ("sum", "mean", "max"):
        for left in (None, keep):
            expected = reference.spmm(graph.indptr, graph.indices, weight, x, reduce, left)
            torch.testing.assert_close(spmm(graph, weight, x, reduce, left, backend=backend), expected)
    score = torch.randn(graph.edges, 2, generator=rng)
    expected = reference.edge_softmax(graph.indptr, graph.indices, score, keep)
    torch.testing.assert_close(edge_softmax(graph, score, keep, backend=backend), expected)
    parts = [torch.randn(*shape, generator=rng) for shape in ((30, 2, 4), (30, 2, 4), (2, 4))]
    expected = reference.attention(graph.indptr, graph.indices, *parts, 0.2, keep)
    torch.testing.assert_close(attention(graph, *parts, 0.2, keep, backend=backend), expected)


def test_transpose_and_self_loops(rng: torch.Generator):
    graph = random_edges(30, 12, 150, rng)
    there = graph.transpose()
    assert (there.rows, there.columns) == (12, 30) and graph.transpose() is there
    values = torch.randn(150, generator=rng)

    def dense(g: Csr, values: Tensor | None) -> Tensor:
        return reference.spmm(g.indptr, g.indices, values, torch.eye(g.columns))

    torch.testing.assert_close(dense(there, values[there.order]), dense(graph, values).T)
    square = random_edges(15, 15, 60, rng)
    assert dense(square.with_self_loops(), None).diagonal().tolist() == [1.0] * 15
    with pytest.raises(InputError, match="square"):
        graph.with_self_loops()


def test_from_edges_orders_by_target():
    graph = Csr.from_edges(torch.tensor([5, 4, 3, 2]), torch.tensor([1, 0, 1, 0]), 3, 6)
    assert graph.indptr.tolist() == [0, 2, 4, 4]
    assert graph.indices.tolist() == [4, 2, 5, 3]
    assert graph.order.tolist() == [1, 3, 0, 2]


def test_opcheck(rng: torch.Generator):
    graph, keep = random_edges(9, 9, 30, rng), torch.arange(9) != 2
    arrays = (graph.indptr, graph.indices, 9)
    x, weight = torch.randn(9, 5, generator=rng).requires_grad_(), torch.randn(2, 30, generator=rng).requires_grad_()
    torch.library.opcheck(torch.ops.onp.spmm.default, (*arrays, weight, x, "mean", keep))
    torch.library.opcheck(torch.ops.onp.spmm.default, (*arrays, None, x, "max", None))
    score = torch.randn(30, 2, generator=rng).requires_grad_()
    torch.library.opcheck(torch.ops.onp.edge_softmax.default, (*arrays, score, keep))
    parts = [torch.randn(*shape, generator=rng).requires_grad_() for shape in ((9, 2, 3), (9, 2, 3), (2, 3))]
    torch.library.opcheck(torch.ops.onp.attention.default, (*arrays, *parts, 0.2, keep))


def test_compiled_without_a_graph_break(rng: torch.Generator):
    graph = random_edges(9, 9, 30, rng)
    x, weight, att = (torch.randn(*shape, generator=rng).requires_grad_() for shape in ((9, 5), (30,), (1, 5)))

    def both(weight: Tensor, x: Tensor, att: Tensor) -> Tensor:
        return attention(graph, spmm(graph, weight, x, "mean")[:, None], x[:, None], att).square().sum()

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(both(weight, x, att), (weight, x, att))
    for ours, theirs in zip(torch.autograd.grad(compiled(weight, x, att), (weight, x, att)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("indptr", "indices"),
    [
        ([0, 2, 3], [0, 1, 4]),
        ([0, 2, 3], [0, -1, 1]),
        ([0, 3, 2], [0, 1, 2]),
        ([0, 9, 3], [0, 1, 2]),
        ([1, 2, 3], [0, 1, 2]),
        ([0, 2, 4], [0, 1, 2]),
        ([-1, 2, 3], [0, 1, 2]),
    ],
    ids=["index-above", "index-below", "falls", "peaks", "starts-late", "ends-late", "negative"],
)
def test_edges_outside_the_graph(indptr: list[int], indices: list[int], backend: str):
    for dtype in (torch.int64, torch.int32):
        graph = Csr(torch.tensor(indptr, dtype=dtype), torch.tensor(indices, dtype=dtype), 4)
        with pytest.raises(InputError, match="The graph cannot be used"):
            spmm(graph, None, torch.ones(4, 3), backend=backend)
        native = backends.native()
        with pytest.raises(ValueError, match="ind"):
            arrays = (graph.indptr.data_ptr(), graph.indices.data_ptr(), 0, 2, 4, 3)
            native.Graph(*arrays, graph.indptr.element_size(), False, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reduce": "median"}, "choose sum, mean or max"),
        ({"indptr": torch.zeros(0, dtype=torch.int64)}, "must be vectors"),
        ({"indices": torch.zeros(3, 2, dtype=torch.int64)}, "must be vectors"),
        ({"indptr": torch.tensor([0, 1, 3], dtype=torch.int32)}, "both be int64 or int32"),
        ({"indices": torch.tensor([0.0, 1.0, 2.0])}, "both be int64 or int32"),
        ({"x": torch.ones(4)}, "floating point"),
        ({"x": torch.ones(5, 3)}, "floating point"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, "floating point"),
        ({"weight": torch.ones(2)}, "weight must be"),
        ({"weight": torch.ones(3, dtype=torch.float64)}, "weight must be"),
        ({"weight": torch.ones(2, 3), "x": torch.ones(5, 4, 3)}, "does not fit"),
        ({"x": torch.ones(4, 3, device="meta")}, "one device"),
        ({"x": torch.ones(4, 3, dtype=torch.float64), "weight": None, "backend": "native"}, "float32"),
        ({"keep": torch.ones(2, dtype=torch.bool)}, "square"),
        ({"backend": "fortran"}, "choose native, torch-sparse"),
    ],
)
def test_wrong_calls(change: dict, sentence: str):
    good = dict(indptr=torch.tensor([0, 1, 3]), indices=torch.arange(3), weight=torch.ones(3), x=torch.ones(4, 3))

    def call(indptr: Tensor, indices: Tensor, **rest) -> Tensor:
        return spmm(Csr(indptr, indices, 4), **rest)

    assert call(**good).shape == (2, 3)
    with pytest.raises(InputError, match=sentence):
        call(**(good | change))


def test_from_edges_refuses_strangers():
    with pytest.raises(InputError, match="target"):
        Csr.from_edges(torch.tensor([0]), torch.tensor([3]), 3)
    with pytest.raises(InputError, match="source"):
        Csr.from_edges(torch.tensor([-1]), torch.tensor([0]), 3)


def test_auto_does_without_the_native_module(fresh_backend, monkeypatch, caplog, rng: torch.Generator):
    monkeypatch.delenv("ONP_BACKEND", raising=False)
    for name in ("onp_native", "torch_sparse", "torch_scatter"):
        monkeypatch.setitem(sys.modules, name, None)
    graph = random_edges(10, 10, 30, rng)
    x = torch.randn(10, 4, generator=rng)
    with caplog.at_level(logging.INFO, logger="onp"):
        for _ in range(3):
            assert torch.equal(spmm(graph, None, x), reference.spmm(graph.indptr, graph.indices, None, x))
    assert len(caplog.records) == 1 and "onp_native cannot be imported" in caplog.text
    for backend in ("native", "torch-sparse", "torch-scatter"):
        with pytest.raises(InputError, match=rf"{backend} backend was asked for, but .* cannot be imported"):
            spmm(graph, None, x, backend=backend)


@pytest.mark.parametrize(
    ("environment", "requested", "device", "chosen"),
    [
        ("torch", None, "cpu", "torch"),
        ("torch", "native", "cpu", "native"),
        ("", None, "cpu", "native"),
        ("", None, "mps", "torch"),
    ],
)
def test_the_environment_chooses(fresh_backend, monkeypatch, environment, requested, device, chosen):
    monkeypatch.setenv("ONP_BACKEND", environment)
    assert backends.choose(requested, device) == chosen
