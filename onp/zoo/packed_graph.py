"""The neuron graph in few bytes: per relation the number of edges of each unit, their sources and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onp.errors import InputError
from onp.model.layers import Layer
from onp.model.victim import Victim
from onp.search.neuron_graph import RELATIONS, NeuronGraph, build_graph
from onp.zoo.packed import Arrays

DEGREE = 4  #: edges wanted of a unit in each relation
STRENGTHS = 15  # levels of the weights of one unit's edges, which sum to 1


def relation_graphs(victim: Victim) -> dict[str, NeuronGraph]:
    """A graph for each of `RELATIONS` alone; weights sum to 1 for each unit that has edges of the relation."""
    return {relation: build_graph(victim, (relation,), degree=DEGREE) for relation in RELATIONS}


def pack_graphs(graphs: Mapping[str, NeuronGraph]) -> Arrays:
    """As arrays of small numbers.

    Per relation: `counts` uint8 `[V]`; `sources` uint16 `[E]`, ascending for each unit, the first one counted from the source
    that the unit before it has first, plus V, and the others from the source before; `weights` uint8 `[E]`, in `STRENGTHS` of
    the largest of the unit. Bytes of one kind stand together.
    """
    arrays: Arrays = {}
    for relation, graph in graphs.items():
        rows = graph.csr.targets()
        order = torch.argsort(rows * graph.nodes + graph.indices)
        sources, weights = graph.indices[order].numpy(), graph.weight[order]
        most = torch.zeros(graph.nodes).scatter_reduce(0, rows, weights, "amax")[rows].clamp_min(1e-12)
        counts = graph.indptr.diff().numpy()
        starts = graph.indptr[:-1].numpy()[counts > 0]
        steps = np.diff(sources, prepend=0)
        steps[starts] = np.diff(sources[starts], prepend=0) + graph.nodes
        arrays |= {
            f"graph.{relation}.counts": counts.astype(np.uint8),
            f"graph.{relation}.sources.low": (steps & 255).astype(np.uint8),
            f"graph.{relation}.sources.high": (steps >> 8).astype(np.uint8),
            f"graph.{relation}.weights": (weights / most * STRENGTHS).round().clamp_min(1).to(torch.uint8).numpy(),
        }
    return arrays


def unpack_graphs(arrays: Mapping[str, NDArray[Any]], layers: Sequence[Layer]) -> dict[str, NeuronGraph]:
    """The graphs of `pack_graphs`.

    Raises:
        InputError: the arrays are none.
    """
    nodes = sum(layer.units for layer in layers)
    layer_of = torch.repeat_interleave(torch.arange(len(layers)), torch.tensor([layer.units for layer in layers]))
    graphs = {}
    for relation in RELATIONS:
        counts, low, high, weights = (
            torch.from_numpy(arrays[f"graph.{relation}.{name}"].astype(np.int64))
            for name in ("counts", "sources.low", "sources.high", "weights")
        )
        indptr = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
        if len(counts) != nodes or not len(low) == len(high) == len(weights) == int(indptr[-1]):
            raise InputError(f"The edges '{relation}' of a dossier do not fit its units; make it again.")
        steps, first = low + 256 * high, indptr[:-1][counts > 0]
        heads = torch.zeros(len(steps), dtype=torch.bool)
        heads[first] = True
        starts = (steps[first] - nodes).cumsum(0)
        within = torch.where(heads, 0, steps).cumsum(0)
        rows = torch.repeat_interleave(torch.arange(nodes), counts)
        place = heads.cumsum(0) - 1
        sources = starts[place] + within - within[first][place]
        if len(sources) and not 0 <= int(sources.min()) <= int(sources.max()) < nodes:
            raise InputError(f"An edge '{relation}' of a dossier comes from no unit; make it again.")
        total = torch.zeros(nodes).index_add_(0, rows, weights.float())
        graphs[relation] = NeuronGraph(indptr, sources, weights.float() / total[rows].clamp_min(1e-12), layer_of)
    return graphs
