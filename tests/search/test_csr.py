import pytest
import torch
from helpers.op_cases import random_edges
from torch import Tensor

from onp.errors import InputError
from onp.search.message_passing.csr import Csr
from onp_kernels import reference_graph as reference


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


def test_from_edges_refuses_strangers():
    with pytest.raises(InputError, match="target"):
        Csr.from_edges(torch.tensor([0]), torch.tensor([3]), 3)
    with pytest.raises(InputError, match="source"):
        Csr.from_edges(torch.tensor([-1]), torch.tensor([0]), 3)
