import logging
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from onp import backend as backends
from onp.errors import InputError
from onp.ops import Csr, spmm
from onp_kernels import reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


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
    for cached in (backends.native_module, backends._choose):
        cached.cache_clear()
    yield
    for cached in (backends.native_module, backends._choose):
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


def assert_as_exact(actual: Tensor, plain: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """`actual` errs at most twice as much as plain torch in the same precision, plus one rounding of `magnitude`.

    `magnitude` is the same sum over absolute values: where terms cancel, the error of either is partly luck.
    """
    assert actual.dtype == plain.dtype and actual.shape == exact.shape
    if exact.numel():
        rounding = torch.finfo(actual.dtype).eps * magnitude
        allowed = (plain - exact).abs().max()
        assert ((actual - exact).abs() <= 2 * allowed + rounding).all()


def inputs(graph: Csr, features: int, weighted: bool, rng: torch.Generator) -> tuple[Tensor | None, Tensor]:
    weight = torch.randn(len(graph.indices), generator=rng) if weighted else None
    return weight, torch.randn(graph.columns, features, generator=rng)


def in_double(graph: Csr, weight: Tensor | None, x: Tensor, reduce: str = "sum") -> tuple[Tensor, Tensor]:
    """The exact result, and the same over absolute values."""
    w = double(weight)
    exact = reference.spmm(graph.indptr, graph.indices, w, x.double(), reduce)
    return exact, reference.spmm(graph.indptr, graph.indices, None if w is None else w.abs(), x.double().abs(), reduce)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("name", GRAPHS)
def test_spmm_native(name: str, reduce: str, weighted: bool, index: torch.dtype, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    indptr, indices = graph.indptr.to(index), graph.indices.to(index)
    for features in (0, 1, 7, 32, 45):
        weight, x = inputs(graph, features, weighted, rng)
        plain = reference.spmm(indptr, indices, weight, x, reduce)
        on_device = [None if t is None else t.to(device) for t in (indptr, indices, weight, x)]
        actual = spmm(*on_device, reduce, backend="native").cpu()
        assert_as_exact(actual, plain, *in_double(graph, weight, x, reduce))


def test_reference_against_a_loop(rng: torch.Generator):
    graph = random_edges(13, 8, 50, rng)
    weight, x = (double(t) for t in inputs(graph, 3, True, rng))
    total = torch.zeros(13, 3, dtype=torch.float64)
    count = torch.zeros(13, dtype=torch.float64)
    for row in range(13):
        for edge in range(int(graph.indptr[row]), int(graph.indptr[row + 1])):
            total[row] += weight[edge] * x[graph.indices[edge]]
            count[row] += 1
    torch.testing.assert_close(reference.spmm(graph.indptr, graph.indices, weight, x), total)
    mean = reference.spmm(graph.indptr, graph.indices, weight, x, "mean")
    torch.testing.assert_close(mean, total / count.clamp(min=1)[:, None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["column-slice", "row-slice", "transposed", "expanded"])
def test_strided_features(layout: str, device: str, rng: torch.Generator):
    graph = random_edges(50, 50, 300, rng)
    wide = torch.randn(100, 100, generator=rng)
    x = {
        "column-slice": wide[:50, 3:36],
        "row-slice": wide[::2, :20],
        "transposed": wide[:40, :50].T,
        "expanded": wide[:1, :9].expand(50, 9),
    }[layout]
    weight = torch.rand(2 * 300, generator=rng)[::2]
    plain = reference.spmm(graph.indptr, graph.indices, weight, x)
    assert not x.is_contiguous()
    on_device = [t.to(device) for t in (graph.indptr, graph.indices, weight, x)]
    assert_as_exact(spmm(*on_device, backend="native").cpu(), plain, *in_double(graph, weight, x))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("name", ["random", "rectangular", "mostly-empty-rows", "skewed", "duplicates", "zero-edges"])
def test_gradients_native(name: str, weighted: bool, reduce: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    weight, x = inputs(graph, 19, weighted, rng)
    upstream = torch.randn(graph.rows, 19, generator=rng)

    def gradients(function, convert=torch.clone) -> list[Tensor]:
        leaves = [convert(t).requires_grad_() for t in (x, weight) if t is not None]
        out = function(leaves[1] if weighted else None, leaves[0])
        return list(torch.autograd.grad(out, leaves, convert(upstream)))

    def by_reference(w: Tensor | None, x: Tensor) -> Tensor:
        return reference.spmm(graph.indptr, graph.indices, w, x, reduce)

    native = gradients(lambda w, x: graph.spmm(w, x, reduce, "native"))
    without_transpose = gradients(lambda w, x: spmm(graph.indptr, graph.indices, w, x, reduce, backend="native"))
    plain = gradients(by_reference)
    exact = gradients(by_reference, torch.Tensor.double)
    magnitude = gradients(by_reference, lambda t: t.double().abs())
    for ours, again, *truth in zip(native, without_transpose, plain, exact, magnitude, strict=True):
        assert_as_exact(ours, *truth)
        assert torch.equal(ours, again)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=["int64", "int32"])
def test_gradcheck_in_double(index: torch.dtype, reduce: str, rng: torch.Generator):
    graph = random_edges(7, 5, 16, rng)
    indptr, indices = graph.indptr.to(index), graph.indices.to(index)
    weight, x = (double(t).requires_grad_() for t in inputs(graph, 3, True, rng))
    assert torch.autograd.gradcheck(lambda w, x: spmm(indptr, indices, w, x, reduce, backend="torch"), (weight, x))
    assert torch.autograd.gradcheck(lambda x: spmm(indptr, indices, None, x, reduce, backend="torch"), (x,))


def test_only_the_asked_gradient(rng: torch.Generator):
    graph = random_edges(20, 20, 60, rng)
    weight, x = inputs(graph, 4, True, rng)
    graph.spmm(weight.requires_grad_(), x).sum().backward()
    assert weight.grad is not None and x.grad is None
    with torch.no_grad():
        assert not graph.spmm(weight, x).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_every_time(device: str, rng: torch.Generator):
    """Also with threads: this graph is large enough to be cut, and row 0 is longer than any fair part."""
    target = torch.cat([torch.zeros(60_000, dtype=torch.int64), torch.randint(3000, (60_000,), generator=rng)])
    graph = Csr.from_edges(torch.randint(3000, (120_000,), generator=rng), target, 3000)
    weight, x = inputs(graph, 40, True, rng)
    tensors = [t.to(device) for t in (graph.indptr, graph.indices, weight, x)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = spmm(*tensors, backend="native")
        torch.set_num_threads(4)
        assert all((spmm(*tensors, backend="native") - first).abs().max() == 0 for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    assert not first.isnan().any()


def test_transpose(rng: torch.Generator):
    graph = random_edges(30, 12, 150, rng)
    there = graph.transpose()
    assert (there.rows, there.columns) == (12, 30)
    assert graph.transpose() is there
    edge_values = torch.randn(150, generator=rng)

    def dense(g: Csr, values: Tensor) -> Tensor:
        return reference.spmm(g.indptr, g.indices, values, torch.eye(g.columns))

    torch.testing.assert_close(dense(there, edge_values[there.order]), dense(graph, edge_values).T)


def test_from_edges_orders_by_target():
    graph = Csr.from_edges(torch.tensor([5, 4, 3, 2]), torch.tensor([1, 0, 1, 0]), 3, 6)
    assert graph.indptr.tolist() == [0, 2, 4, 4]
    assert graph.indices.tolist() == [4, 2, 5, 3]
    assert graph.order.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_opcheck(reduce: str, rng: torch.Generator):
    graph = random_edges(9, 6, 30, rng)
    weight, x = inputs(graph, 5, True, rng)
    for w in (weight.requires_grad_(), None):
        torch.library.opcheck(torch.ops.onp.spmm.default, (graph.indptr, graph.indices, w, x.requires_grad_(), reduce))


def test_registered_op_has_the_same_gradients(rng: torch.Generator):
    graph = random_edges(9, 6, 30, rng)
    weight, x = (t.requires_grad_() for t in inputs(graph, 5, True, rng))
    registered = torch.compile(lambda w, x: graph.spmm(w, x, "mean"), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(graph.spmm(weight, x, "mean").square().sum(), (weight, x))
    actual = torch.autograd.grad(registered(weight, x).square().sum(), (weight, x))
    for ours, theirs in zip(actual, expected, strict=True):
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
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=["int64", "int32"])
def test_edges_outside_the_graph(indptr: list[int], indices: list[int], backend: str, dtype: torch.dtype):
    with pytest.raises(InputError, match="The graph cannot be used"):
        edges = torch.tensor(indptr, dtype=dtype), torch.tensor(indices, dtype=dtype)
        spmm(*edges, None, torch.ones(4, 3), backend=backend)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reduce": "max"}, "choose sum or mean"),
        ({"indptr": torch.zeros(0, dtype=torch.int64)}, "must be vectors"),
        ({"indices": torch.zeros(2, 2, dtype=torch.int64)}, "must be vectors"),
        ({"indptr": torch.tensor([0, 1, 3], dtype=torch.int32)}, "both be int64 or int32"),
        ({"indices": torch.tensor([0.0, 1.0, 2.0])}, "both be int64 or int32"),
        ({"x": torch.ones(4)}, "floating point"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, "floating point"),
        ({"weight": torch.ones(2)}, "weight must be"),
        ({"weight": torch.ones(3, dtype=torch.float64)}, "weight must be"),
        ({"x": torch.ones(4, 3, device="meta")}, "one device"),
        ({"x": torch.ones(4, 3, dtype=torch.float64), "weight": None, "backend": "native"}, "float32"),
        ({"backend": "fortran"}, "choose native, torch or auto"),
    ],
)
def test_wrong_calls(change: dict, sentence: str):
    good = dict(indptr=torch.tensor([0, 1, 3]), indices=torch.arange(3), weight=torch.ones(3), x=torch.ones(4, 3))
    assert spmm(**good).shape == (2, 3)
    with pytest.raises(InputError, match=sentence):
        spmm(**(good | change))


def test_from_edges_refuses_strangers():
    with pytest.raises(InputError, match="target"):
        Csr.from_edges(torch.tensor([0]), torch.tensor([3]), 3)
    with pytest.raises(InputError, match="source"):
        Csr.from_edges(torch.tensor([-1]), torch.tensor([0]), 3)


def test_the_native_door_refuses_bad_sizes():
    native, _ = backends.native_module()
    good = dict(indptr=1, indices=1, index_bytes=8, weight=0, x=1, out=1, rows=1, columns=1, edges=1, features=1)
    good |= dict(x_stride=1, out_stride=1, mean=False, cuda=False, threads=1, stream=0)
    for change in (
        {"rows": -1}, {"edges": -1}, {"index_bytes": 2}, {"indptr": 0}, {"indices": 0}, {"x": 0}, {"out": 0},
        {"x_stride": -1}, {"rows": 2, "features": 4, "out_stride": 3},
    ):
        with pytest.raises(ValueError):
            native.spmm(**(good | change))


def test_other_precisions_run_in_torch(rng: torch.Generator):
    graph = random_edges(10, 10, 30, rng)
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(10, 4, generator=rng).to(dtype)
        assert torch.equal(graph.spmm(None, x), reference.spmm(graph.indptr, graph.indices, None, x))


def test_auto_does_without_the_native_module(fresh_backend, monkeypatch, caplog, rng: torch.Generator):
    monkeypatch.delenv("ONP_BACKEND", raising=False)
    monkeypatch.setitem(sys.modules, "onp_native", None)
    graph = random_edges(10, 10, 30, rng)
    x = torch.randn(10, 4, generator=rng)
    with caplog.at_level(logging.INFO, logger="onp"):
        for _ in range(3):
            assert torch.equal(graph.spmm(None, x), reference.spmm(graph.indptr, graph.indices, None, x))
    assert len(caplog.records) == 1 and "onp_native cannot be imported" in caplog.text
    with pytest.raises(InputError, match=r"asked for, but onp_native cannot be imported .*`pip install"):
        graph.spmm(None, x, backend="native")


def test_the_environment_chooses(fresh_backend, monkeypatch):
    monkeypatch.setenv("ONP_BACKEND", "torch")
    assert backends.choose(None, "cpu") == "torch"
    assert backends.choose("native", "cpu") == "native"
    monkeypatch.setenv("ONP_BACKEND", "native")
    assert backends.choose(None, "cpu") == "native"
    monkeypatch.delenv("ONP_BACKEND")
    assert backends.choose(None, "cpu") == "native"
    assert backends.choose(None, "mps") == "torch"
