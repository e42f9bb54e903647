"""A quick look at message passing (the full table: bench/message_passing.py): `message_passing.ops.spmm` against
torch's own ways and, where installed, torch-sparse and torch-scatter.

Every row is checked against float64 before it is timed. `forward` is one weighted sum; `training` adds the gradient
of x. Each implementation may prepare what it keeps between calls (a transpose, a sparse tensor) outside the timing.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onp.search.message_passing.csr import Csr
from onp.search.message_passing.ops import spmm
from onp_kernels import reference_graph as reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = {  # nodes, edges drawn (a few fall together), features
    "policy": (2_000, 24_000, 32),
    "large": (20_000, 320_000, 128),
}
Op = Callable[[Tensor], Tensor]


def onp(graph: Csr, weight: Tensor) -> Op:
    return lambda x: spmm(graph, weight, x, backend="native")


def index_add(graph: Csr, weight: Tensor) -> Op:
    return lambda x: reference.spmm(graph.indptr, graph.indices, weight, x)


def torch_sparse_csr(graph: Csr, weight: Tensor) -> Op:
    sizes = (graph.rows, graph.columns)
    matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, weight, sizes, check_invariants=True)
    return lambda x: matrix @ x


def torch_sparse(graph: Csr, weight: Tensor) -> Op:
    library = importlib.import_module("torch_sparse")
    sizes = (graph.rows, graph.columns)
    matrix = library.SparseTensor(rowptr=graph.indptr, col=graph.indices, value=weight, sparse_sizes=sizes)
    return lambda x: library.matmul(matrix, x)


def torch_scatter(graph: Csr, weight: Tensor) -> Op:
    library = importlib.import_module("torch_scatter")
    return lambda x: library.segment_csr(x.index_select(0, graph.indices) * weight[:, None], graph.indptr)


@pytest.mark.parametrize("implementation", [onp, index_add, torch_sparse_csr, torch_sparse, torch_scatter])
@pytest.mark.parametrize("job", ["forward", "training"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_spmm(benchmark, shape: str, device: str, job: str, implementation: Callable[[Csr, Tensor], Op]):
    if implementation in (torch_sparse, torch_scatter):
        pytest.importorskip(implementation.__name__)
    nodes, edges, features = SHAPES[shape]
    rng = torch.Generator().manual_seed(0)
    # Torch's CSR wants distinct edges with rising columns: edge number target * nodes + source, each once.
    number = torch.randint(nodes * nodes, (edges,), generator=rng).unique()
    source, target = number % nodes, number // nodes
    weight = torch.rand(len(number), generator=rng).to(device)
    graph = Csr.from_edges(source.to(device), target.to(device), nodes)
    x = torch.randn(nodes, features, generator=rng).to(device)
    upstream = torch.randn(nodes, features, generator=rng).to(device)
    op = implementation(graph, weight)

    def forward() -> Tensor:
        return op(x)

    def training() -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(op(leaf), leaf, upstream)[0]

    exact_leaf = x.double().requires_grad_()
    exact = reference.spmm(graph.indptr, graph.indices, weight.double(), exact_leaf)
    if job == "training":
        exact = torch.autograd.grad(exact, exact_leaf, upstream.double())[0]
    work = forward if job == "forward" else training
    torch.testing.assert_close(work().double(), exact.detach(), rtol=1e-4, atol=1e-4)

    def timed() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"spmm {job} {shape}: {nodes} nodes, {edges} edges, {features} features, {device}"
    benchmark.extra_info |= {"edges": len(number), "multiply_adds": len(number) * features, "bytes_of_x": x.nbytes}
    benchmark.pedantic(timed, rounds=30, warmup_rounds=5)
