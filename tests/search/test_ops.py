import pytest
import torch
from helpers.op_cases import DEVICES, GRAPHS, assert_like_reference, mask, on, random_edges
from torch import Tensor

from onp.errors import InputError
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.ops import attention, edge_softmax, spmm
from onp_kernels import reference_graph as reference

pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture(params=["int64", "int32", "wide"])
def index(request) -> str:
    """The type of a graph's numbers; "wide": they stay int64 in the compiled module too, as those of the largest graphs do."""
    return request.param


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", GRAPHS)
def test_spmm(name: str, reduce: str, index: str, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    moved = on(device, graph, index)
    for features, weighted in ((0, False), (1, True), (7, False), (32, True), (45, True), (150, False), (140, True)):
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
    for heads, left in ((1, None), (1, keep), (3, keep)):
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
def test_edge_softmax_in_bfloat16(device: str, rng: torch.Generator):
    graph, score = random_edges(30, 30, 200, rng), torch.randn(200, 3, generator=rng).bfloat16()
    moved = on(device, graph)

    def native(score: Tensor) -> Tensor:
        return edge_softmax(moved, score, backend="native")

    def plain(score: Tensor) -> Tensor:
        return reference.edge_softmax(graph.indptr, graph.indices, score)

    assert_like_reference(graph, native, plain, [score], rng, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", GRAPHS)
def test_attention(name: str, index: str, device: str, rng: torch.Generator):
    graph = GRAPHS[name](rng)
    moved = on(device, graph, index)
    shapes = ((1, 1, ()), (3, 7, ()), (2, 33, (3,)), (1, 9, (2,)), (2, 12, (3,)), (1, 64, ()), (1, 150, ()))
    for heads, channels, copies in shapes:
        keep = mask(graph, copies, rng) if copies and graph.rows == graph.columns else None
        source = torch.randn(graph.columns, heads, channels, generator=rng)
        target = torch.randn(*copies, graph.rows, heads, channels, generator=rng)
        att = torch.randn(heads, channels, generator=rng) / channels**0.5  # scores near 1, as a fresh layer's are

        def native(*inputs: Tensor, keep: Tensor | None = keep) -> Tensor:
            return attention(moved, *inputs, 0.1, None if keep is None else keep.to(device), backend="native")

        def plain(*inputs: Tensor, keep: Tensor | None = keep) -> Tensor:
            return reference.attention(graph.indptr, graph.indices, *inputs, 0.1, keep)

        assert_like_reference(graph, native, plain, [source, target, att], rng, device)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_in_bfloat16(device: str, rng: torch.Generator):
    graph = random_edges(60, 60, 500, rng)
    moved, keep = on(device, graph), mask(graph, (2,), rng)
    leaves = [torch.randn(*shape, generator=rng).bfloat16() for shape in ((2, 60, 2, 24), (60, 2, 24), (2, 24))]

    def native(*inputs: Tensor) -> Tensor:
        return attention(moved, *inputs, keep=keep.to(device), backend="native")

    def plain(*inputs: Tensor) -> Tensor:
        return reference.attention(graph.indptr, graph.indices, *inputs, keep=keep)

    assert_like_reference(graph, native, plain, leaves, rng, device)


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
    score, att = x[:, :4].expand(2, -1, -1)[:, graph.indices], torch.randn(6, 1, generator=rng).T
    assert torch.equal(edge_softmax(graph, score), edge_softmax(graph, score.contiguous()))
    heads = x[:, None, :6]
    expected = attention(graph, heads.contiguous(), heads.contiguous(), att.contiguous())
    assert torch.equal(attention(graph, heads, heads, att), expected)


def test_layouts_one_after_the_other(rng: torch.Generator):
    """What was worked out for one layout serves no other, with gradients and without; nor does it hide a bad call."""
    graph = random_edges(20, 20, 90, rng)
    weight, keep = torch.rand(90, generator=rng), mask(graph, (), rng)
    for _ in range(2):
        for x in (torch.randn(20, 6, generator=rng), torch.randn(6, 20, generator=rng).T, torch.randn(3, 20, 6, generator=rng)):
            for w, k in ((weight, None), (None, None), (weight, keep), (weight.expand(3, -1), keep)):
                expected = reference.spmm(graph.indptr, graph.indices, w, x, "mean", k)
                found = spmm(graph, w, x, "mean", k, backend="native")
                torch.testing.assert_close(found, expected)
                assert torch.equal(spmm(graph, w, x.clone().requires_grad_(), "mean", k, backend="native"), found)
        with pytest.raises(InputError, match="weight must be"):
            spmm(graph, weight[:-1], x, "mean")
        with pytest.raises(InputError, match="x must be"):
            spmm(graph, weight, x[:, :-1], "mean")
    for features in range(100):
        spmm(graph, None, torch.ones(20, features))
    assert len(graph.prepared) <= 64


def test_gradients_from_any_layout_for_some_of_the_arguments(rng: torch.Generator):
    """What was prepared for a gradient of one layout serves no other; att and the target are constants here."""
    graph = random_edges(20, 20, 90, rng)
    x = torch.randn(20, 6, generator=rng).requires_grad_()
    target, att = torch.randn(20, 1, 6, generator=rng), torch.randn(1, 6, generator=rng)
    wide = torch.randn(20, 20, generator=rng)
    for upstream in (wide[:, :6].contiguous(), wide[:6].T, wide[:, 3:9], wide[:1, :1].expand(20, 6), wide[:, :6].contiguous()):
        for reduce in ("sum", "mean", "max"):
            exact = reference.spmm(graph.indptr, graph.indices, None, x, reduce)
            expected = torch.autograd.grad(exact, x, upstream)[0]
            found = torch.autograd.grad(spmm(graph, None, x, reduce, backend="native"), x, upstream)[0]
            torch.testing.assert_close(found, expected)
        exact = reference.attention(graph.indptr, graph.indices, x[:, None], target, att, 0.2)
        found = attention(graph, x[:, None], target, att, backend="native")
        expected = torch.autograd.grad(exact, x, upstream[:, None])[0]
        torch.testing.assert_close(torch.autograd.grad(found, x, upstream[:, None])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_no_copies_at_all(device: str, rng: torch.Generator):
    graph = on(device, random_edges(9, 9, 30, rng))
    x, score = (torch.ones(0, *shape, device=device).requires_grad_() for shape in ((9, 4), (30, 2)))
    weight, att = torch.ones(30, device=device).requires_grad_(), torch.ones(1, 4, device=device).requires_grad_()
    outs = [spmm(graph, weight, x, reduce, backend="native") for reduce in ("sum", "mean", "max")]
    outs.append(attention(graph, x[:, :, None], x[:, :, None], att, backend="native"))
    softmax = edge_softmax(graph, score, backend="native")
    assert [len(out) for out in (*outs, softmax)] == [0] * 5
    total = sum(out.sum() for out in (*outs, softmax))
    found = torch.autograd.grad(total, (x, score, weight, att))
    assert [tuple(t.shape) for t in found] == [(0, 9, 4), (0, 30, 2), (30,), (1, 4)]
    assert not found[2].any() and not found[3].any()


def test_gradcheck_in_double(rng: torch.Generator):
    graph, keep = random_edges(7, 7, 16, rng), torch.arange(7) != 3
    double = {"dtype": torch.float64, "generator": rng, "requires_grad": True}
    weight, x, score = torch.randn(16, **double), torch.randn(2, 7, 3, **double), torch.randn(16, 2, **double)
    for reduce in ("sum", "mean", "max"):
        assert torch.autograd.gradcheck(lambda w, x, reduce=reduce: spmm(graph, w, x, reduce, keep), (weight, x))
    assert torch.autograd.gradcheck(lambda s: edge_softmax(graph, s, keep), (score,))
    parts = (torch.randn(7, 2, 3, **double), torch.randn(7, 2, 3, **double), torch.randn(2, 3, **double))
    assert torch.autograd.gradcheck(lambda *t: attention(graph, *t, 0.2, keep), parts)


def test_a_second_derivative_is_refused(rng: torch.Generator):
    graph, x = random_edges(10, 10, 40, rng), torch.randn(10, 1, 3, generator=rng, requires_grad=True)
    score, att = torch.randn(40, 2, generator=rng, requires_grad=True), torch.randn(1, 3, generator=rng)
    outs = (spmm(graph, None, x[:, 0]), edge_softmax(graph, score), attention(graph, x, x, att))
    for leaf, out in zip((x, score, x), outs, strict=True):
        (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.square().sum().backward()


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
