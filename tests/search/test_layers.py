import pytest
import torch
from torch import nn

from onp.errors import InputError
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.layers import GATv2Conv, GINConv, SAGEConv
from onp.search.neuron_graph import NeuronGraph


@pytest.fixture
def graph(rng: torch.Generator) -> Csr:
    source, target = torch.randint(25, (2, 90), generator=rng)
    return Csr.from_edges(source, target, 25)


def edge_index(graph: Csr) -> torch.Tensor:
    return torch.stack((graph.indices, graph.targets()))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


SIZES = {"in_channels": 6, "out_channels": 5}
PAIRS = {
    **{f"sage-{aggr}": (SAGEConv, "SAGEConv", {**SIZES, "aggr": aggr}) for aggr in ("mean", "sum", "max")},
    "gatv2": (GATv2Conv, "GATv2Conv", {**SIZES, "heads": 3}),
    "gatv2-mean": (GATv2Conv, "GATv2Conv", {**SIZES, "heads": 2, "concat": False}),
    "gin": (GINConv, "GINConv", {"eps": 0.3, "train_eps": True}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_same_numbers_as_pyg(name: str, graph: Csr, rng: torch.Generator):
    """Its weights in our layer: same outputs, same gradients."""
    theirs_module = pytest.importorskip("torch_geometric.nn", exc_type=ImportError)
    make, theirs_name, options = PAIRS[name]
    arguments = (mlp(),) if name == "gin" else ()
    extra = {"add_self_loops": False} if "gatv2" in name else {}
    theirs = getattr(theirs_module, theirs_name)(*arguments, **options, **extra)
    ours = make(*((mlp(),) if name == "gin" else ()), **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(25, 6, generator=rng)
    results = []
    for layer, edges in ((ours, (graph, x)), (theirs, (x, edge_index(graph)))):
        out = layer(*edges)
        out.square().sum().backward()
        results.append((out, {key: p.grad for key, p in layer.named_parameters()}))
    (ours_out, ours_grad), (theirs_out, theirs_grad) = results
    torch.testing.assert_close(ours_out, theirs_out)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: SAGEConv(6, 5), lambda: GATv2Conv(6, 5, heads=2), lambda: GINConv(mlp())])
def test_copies_are_what_each_alone_would_be(make, graph: Csr, rng: torch.Generator):
    layer, x = make(), torch.randn(4, 25, 6, generator=rng)
    keep = torch.rand(4, 25, generator=rng) > 0.2
    together = layer(graph, x, keep=keep)
    for copy in range(4):
        torch.testing.assert_close(together[copy], layer(graph, x[copy], keep=keep[copy]))
        alone = [n for n in range(25) if keep[copy, n]]
        left = keep[copy, graph.indices] & keep[copy, graph.targets()]
        number = torch.cumsum(keep[copy].long(), 0) - 1
        part = Csr.from_edges(number[graph.indices[left]], number[graph.targets()[left]], len(alone))
        torch.testing.assert_close(together[copy, alone], layer(part, x[copy, alone]), rtol=1e-4, atol=1e-5)


def test_unknown_aggregation_is_one_sentence():
    with pytest.raises(InputError, match="choose sum, mean, max"):
        SAGEConv(2, 2, aggr="median")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_to_pyg(graph: Csr):
    neurons = NeuronGraph(graph.indptr, graph.indices, torch.rand(90), torch.zeros(25, dtype=torch.int64))
    pytest.importorskip("torch_geometric.data", exc_type=ImportError)
    data = neurons.to_pyg()
    assert torch.equal(data.edge_index, edge_index(graph)) and data.num_nodes == 25
    assert torch.equal(data.edge_weight, neurons.weight)
