import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.victim import Victim, victim_from_module
from onp.search.neuron_graph import NeuronGraph, build_graph


def victim_of(model: nn.Module, channels: int = 3, size: int = 16) -> Victim:
    return victim_from_module(model, Normalisation.parse("none"), (channels, size, size))


def pairs(graph: NeuronGraph) -> set[tuple[int, int]]:
    """(receiving node, source node) of every edge."""
    rows = torch.repeat_interleave(torch.arange(graph.nodes), graph.indptr.diff())
    return set(zip(rows.tolist(), graph.indices.tolist(), strict=True))


@pytest.mark.parametrize("spec", ["preact_resnet18:width=8", "vgg11_bn:width=8", "mobilenet_v2:width=8"])
def test_graph_is_a_sparse_normalised_csr_over_all_units(spec):
    victim = victim_of(build_network(spec))
    graph = build_graph(victim)
    assert graph.nodes == victim.units
    assert graph.layer.bincount().tolist() == [layer.units for layer in victim.layers]
    assert int(graph.indptr[-1]) == graph.edges == len(graph.weight)
    assert (graph.weight >= 0).all() and graph.weight.isfinite().all()
    sums = torch.zeros(graph.nodes).index_add_(0, torch.repeat_interleave(graph.indptr.diff()), graph.weight)
    torch.testing.assert_close(sums, (graph.indptr.diff() > 0).float())
    assert graph.indptr.diff().max() <= 100
    assert all(row != source for row, source in pairs(graph))


def test_similar_filters_are_neighbours_and_dissimilar_ones_are_not():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:3, :2] = torch.rand(3, 2, 3, 3) + 1  # read channels 0 and 1
        model[0].weight[3:5, 2:] = -torch.rand(2, 2, 3, 3) - 1  # read channels 2 and 3
        model[0].weight[5] = 1e-4  # dormant
    victim = victim_of(model, channels=4)
    found = pairs(build_graph(victim, ("similar",), eps=0.5))
    assert found == {(i, j) for group in ((0, 1, 2), (3, 4)) for i in group for j in group if i != j}
    assert (5, 0) in pairs(build_graph(victim, ("similar",), eps=0.5, delta=0.0))


def test_feeding_edges_follow_the_strongest_kernels_through_concat_and_flatten():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)
            self.c, self.d, self.e = nn.Conv2d(5, 4, 1), nn.Linear(16, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = torch.cat((self.a(x).relu(), self.b(x).relu()), 1)
            x = nn.functional.adaptive_avg_pool2d(self.c(x).relu(), 2).flatten(1)
            return self.e(self.d(x).relu())

    model = Branches()
    with torch.no_grad():
        model.c.weight.zero_()
        model.c.weight[1, 3] = 1.0  # channel 3 of the concatenation is unit 1 of b
        model.d.weight.zero_()
        model.d.weight[5, 4 * 2 + 3] = 1.0  # pixel 3 of unit 2 of c
    victim = victim_of(model)
    offset = {layer.name: layer.offset for layer in victim.layers}
    found = pairs(build_graph(victim, ("feeds",)))
    assert (offset["c"] + 1, offset["b"] + 1) in found and (offset["b"] + 1, offset["c"] + 1) in found
    assert (offset["d"] + 5, offset["c"] + 2) in found
    assert len(found) == 4


def test_grouped_convolutions_are_fed_by_their_own_group():
    convs = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2)
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = pairs(build_graph(victim_of(model), ("feeds",)))
    readers = {(row, source) for row, source in found if row >= 6}
    assert readers == {(6 + k, c) for k in range(4) for c in range(6) if k // 2 == c // 3}


def test_tied_edges_join_equal_channels_of_a_residual_group():
    victim = victim_of(build_network("resnet18:width=8"))
    layers = {layer.offset + unit: (layer.group, unit) for layer in victim.layers for unit in range(layer.units)}
    found = pairs(build_graph(victim, ("tied",)))
    assert found and all(layers[row] == layers[source] for row, source in found)
    assert all((source, row) in found for row, source in found)


def test_gather_is_the_weighted_mean_of_the_neighbours():
    graph = build_graph(victim_of(build_network("vgg11_bn:width=8")))
    x = torch.randn(graph.nodes, 5)
    dense = torch.zeros(graph.nodes, graph.nodes)
    rows = torch.repeat_interleave(graph.indptr.diff())
    dense.index_put_((rows, graph.indices), graph.weight, accumulate=True)
    torch.testing.assert_close(graph.gather(x), dense @ x, rtol=1e-4, atol=1e-5)


def test_no_relations_means_no_edges():
    graph = build_graph(victim_of(build_network("vgg11_bn:width=8")), ())
    assert graph.edges == 0
    assert not graph.gather(torch.randn(graph.nodes, 3)).any()


def test_unknown_relations_and_thresholds_are_refused():
    victim = victim_of(build_network("vgg11_bn:width=8"))
    with pytest.raises(InputError, match="'friends'"):
        build_graph(victim, ("friends",))
    with pytest.raises(InputError, match="delta"):
        build_graph(victim, delta=-1.0)
