import logging
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers.op_cases import mask, random_edges
from torch import Tensor

from onp.engine.native import module, native
from onp.errors import InputError
from onp.search.message_passing.backend import choose
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.ops import attention, edge_softmax, spmm
from onp_kernels import reference_graph as reference

PEERS = [peer for peer in ("torch-sparse", "torch-scatter") if module(peer)[0] is not None]


@pytest.fixture
def fresh_backend() -> Iterator[None]:
    """Clears what was imported and chosen, before and after."""
    for cached in (module, choose):
        cached.cache_clear()
    yield
    for cached in (module, choose):
        cached.cache_clear()


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
        with pytest.raises(ValueError, match="ind"):
            arrays = (graph.indptr.data_ptr(), graph.indices.data_ptr(), 0, 2, 4, 3)
            native().Graph(*arrays, graph.indptr.element_size(), False, 0, 0, 0, 0, 0)


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": torch.ones(4, 2)}, "source must be"),
        ({"target": torch.ones(3, 1, 2)}, "target must be"),
        ({"target": torch.ones(4, 1, 2).bfloat16()}, "must agree"),
        ({"target": torch.ones(4, 2, 1)}, "must agree"),
        ({"att": torch.ones(2)}, "att must be"),
        ({"att": torch.ones(1, 2, dtype=torch.float64)}, "att must be"),
        ({"source": torch.ones(2, 4, 1, 2), "target": torch.ones(3, 4, 1, 2)}, "does not fit"),
        ({"target": torch.ones(4, 1, 2, device="meta")}, "one device"),
        ({"keep": torch.ones(4)}, "keep must be bool"),
        ({"keep": torch.ones(5, dtype=torch.bool)}, "keep must be bool"),
    ],
)
def test_wrong_calls_of_attention(change: dict, sentence: str):
    graph = Csr(torch.tensor([0, 1, 3, 3, 3]), torch.arange(3), 4)
    good = dict(source=torch.ones(4, 1, 2), target=torch.ones(4, 1, 2), att=torch.ones(1, 2), keep=None)
    for _ in range(2):  # the second time its layout is known
        assert attention(graph, **good).shape == (4, 1, 2)
        with pytest.raises(InputError, match=sentence):
            attention(graph, **(good | change))


@pytest.mark.parametrize("score", [torch.ones(3), torch.ones(4, 1), torch.ones(3, 1, dtype=torch.int64)])
def test_wrong_scores(score: Tensor):
    with pytest.raises(InputError, match="score must be"):
        edge_softmax(Csr(torch.tensor([0, 1, 3]), torch.arange(3), 4), score)


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
    assert choose(requested, device) == chosen
