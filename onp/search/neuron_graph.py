"""The graph of neurons a policy looks at: one node per prunable unit, edges between units that work alike or together.

Similarity edges are those of ONP (https://arxiv.org/abs/2405.17746): filter i of a layer connects to the previous
channels with strengths q_i, the L1 norms of its input kernels; two filters are neighbours when the cosine of q_i and
q_j exceeds eps, after connections weaker than delta of the layer's mean (dormant ones) are dropped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from onp.errors import InputError
from onp.model.capture import op_name, value
from onp.model.layers import Layer
from onp.model.victim import Victim
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.ops import spmm

RELATIONS = ("similar", "feeds", "tied")
PRODUCERS = 2  # layers summed into an input that are linked to its reader: the latest ones


@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """Node v is unit v of the flat mask; row v holds the edges that v receives from.

    indptr: int64 [V + 1]; indices: int64 [E]; weight: float32 [E], at least 0, summing to 1 in every row that has edges
    layer: int64 [V], the position of the unit's layer in `victim.layers`
    """

    indptr: Tensor
    indices: Tensor
    weight: Tensor
    layer: Tensor

    @property
    def nodes(self) -> int:
        return len(self.layer)

    @property
    def edges(self) -> int:
        return len(self.indices)

    @cached_property
    def csr(self) -> Csr:
        return Csr(self.indptr, self.indices, self.nodes)

    def gather(self, x: Tensor) -> Tensor:
        """Weighted mean of the neighbours' rows: float32 [V, F] -> [V, F]; 0 for a node without edges."""
        return spmm(self.csr, self.weight, x)

    def to_pyg(self) -> Any:
        """A `torch_geometric.data.Data`: edge_index int64 [2, E] (source, target), edge_weight [E], layer [V].

        Raises InputError where torch-geometric is not installed.
        """
        try:
            from torch_geometric.data import Data
        except ImportError:
            raise InputError("to_pyg needs torch-geometric: install the extra with `pip install '.[pyg]'`.") from None
        edges = torch.stack((self.indices, self.csr.targets()))
        return Data(edge_index=edges, edge_weight=self.weight, layer=self.layer, num_nodes=self.nodes)


def build_graph(
    victim: Victim,
    relations: tuple[str, ...] = RELATIONS,
    *,
    eps: float | None = None,
    delta: float = 0.1,
    degree: int = 8,
) -> NeuronGraph:
    """Connect the units of `victim`; the result is on the CPU.

    relations: any of "similar" (ONP's edges within a layer), "feeds" (strongest kernels between a layer and the layers
        it reads, both directions) and "tied" (one channel of a residual group, from layer to layer); () for no edges
    eps: cosine above which filters are neighbours; None: the value that gives `degree` neighbours on average
    delta: connections below this share of a layer's mean strength count as absent
    degree: neighbours wanted per relation; no node receives more than twice as many "similar" or "feeds" edges

    Raises InputError for an unknown relation or a negative threshold.
    """
    unknown = set(relations) - set(RELATIONS)
    if unknown:
        raise InputError(f"'{min(unknown)}' is not a relation between neurons; choose from {', '.join(RELATIONS)}.")
    if delta < 0 or degree < 1:
        raise InputError(f"delta must not be negative and degree must be at least 1, not {delta} and {degree}.")
    strengths = [_strengths(victim, layer) for layer in victim.layers]
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # target, source, weight
    if "similar" in relations:
        found += [_similar(layer, q, eps, delta, degree) for layer, q in zip(victim.layers, strengths, strict=True)]
    if "feeds" in relations:
        found += _feeding(victim, strengths, degree)
    if "tied" in relations:
        found += _tied(victim.layers)
    layer_of = torch.repeat_interleave(torch.tensor([layer.units for layer in victim.layers], dtype=torch.int64))
    return _assemble(found, layer_of)


def _strengths(victim: Victim, layer: Layer) -> Tensor:
    """q: L1 norm of every input kernel, float32 [K, C / groups]."""
    weight = victim.model.get_parameter(layer.weight).detach().float().cpu()
    return weight.abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs()


def _similar(layer: Layer, q: Tensor, eps: float | None, delta: float, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    units = layer.units
    none = torch.zeros(0, dtype=torch.int64)
    # With one input channel every cosine is 1 and says nothing.
    if q.shape[1] < 2 or units < 2:
        return none, none, torch.zeros(0)
    awake = torch.where(q >= delta * q.mean(), q, 0.0)
    unit = awake / awake.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosine = (unit @ unit.T).fill_diagonal_(-1.0)
    if eps is None:
        pairs = cosine[~torch.eye(units, dtype=torch.bool)]
        wanted = min(len(pairs), units * degree)
        eps = float(pairs.kthvalue(len(pairs) - wanted + 1).values) - 1e-6
    kept = cosine.topk(min(2 * degree, units - 1), dim=1)
    target, place = torch.nonzero((kept.values > eps) & (kept.values > 0), as_tuple=True)
    return target + layer.offset, kept.indices[target, place] + layer.offset, kept.values[target, place]


def _feeding(victim: Victim, strengths: list[Tensor], degree: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    edges = []
    for reader, producer, channels in _readers(victim):
        layer, source = victim.layers[reader], victim.layers[producer]
        q = _per_unit(strengths[reader], channels, layer.units, source.units)
        for strength, rows, columns in ((q, layer.offset, source.offset), (q.T, source.offset, layer.offset)):
            kept = strength.topk(min(degree, strength.shape[1]), dim=1)
            target, place = torch.nonzero(kept.values > 0, as_tuple=True)
            edges.append((target + rows, kept.indices[target, place] + columns, kept.values[target, place]))
    return edges


def _per_unit(q: Tensor, channels: Tensor, units: int, source_units: int) -> Tensor:
    """Strengths [K, C / groups] summed over the input channels that belong to one unit of the producer: [K, units]."""
    groups = len(channels) // q.shape[1]
    group = torch.arange(units) * groups // units
    unit = channels.view(groups, q.shape[1])[group]
    padded = torch.zeros(units, source_units + 1).scatter_add_(1, torch.where(unit < 0, source_units, unit), q)
    return padded[:, :source_units]


def _readers(victim: Victim) -> Iterator[tuple[int, int, Tensor]]:
    """(reading layer, producing layer, unit of the producer behind each input channel int64 [C], -1 where none is)."""
    by_node = {layer.node: index for index, layer in enumerate(victim.layers)}
    behind: dict[fx.Node, dict[int, Tensor]] = {}
    for node in victim.program.graph.nodes:
        index = by_node.get(node.name)
        if index is None:
            behind[node] = {} if _mixes(node) else _passed_on(node, behind)
            continue
        inputs = behind.get(node.args[0], {})
        for producer in sorted(inputs)[-PRODUCERS:]:
            yield index, producer, inputs[producer]
        behind[node] = {index: torch.arange(victim.layers[index].units)}


def _mixes(node: fx.Node) -> bool:
    return "conv" in op_name(node) or op_name(node) in ("linear", "matmul", "bmm", "addmm")


def _passed_on(node: fx.Node, behind: dict[fx.Node, dict[int, Tensor]]) -> dict[int, Tensor]:
    """The units behind each channel of a node that keeps channels apart: elementwise, pooling, concat, flatten."""
    output = value(node)
    if output is None or output.dim() < 2:
        return {}
    merged: dict[int, Tensor] = {}
    if op_name(node) == "cat":
        position = 0
        for part in node.args[0]:  # type: ignore[union-attr]
            width = value(part).shape[1]  # type: ignore[union-attr]
            for index, units in behind.get(part, {}).items():  # type: ignore[arg-type]
                if len(units) == width:
                    whole = merged.setdefault(index, torch.full((output.shape[1],), -1))
                    whole[position : position + width] = units
            position += width
        return merged
    for source in node.all_input_nodes:
        for index, units in behind.get(source, {}).items():
            if len(units) in (output.shape[1], output.shape[-1]):
                merged[index] = units
            elif output.dim() == 2 and (before := value(source)) is not None and len(units) == before.shape[1]:
                pixels = math.prod(before.shape[2:])
                if len(units) * pixels == output.shape[1]:
                    merged[index] = units.repeat_interleave(pixels)
    return merged


def _tied(layers: tuple[Layer, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    members = defaultdict(list)
    for layer in layers:
        members[layer.group, layer.units].append(layer)
    edges = []
    for group in members.values():
        for first, second in pairwise(group):
            a, b = first.offset + torch.arange(first.units), second.offset + torch.arange(second.units)
            edges += [(a, b, torch.ones(len(a))), (b, a, torch.ones(len(a)))]
    return edges


def _assemble(found: list[tuple[Tensor, Tensor, Tensor]], layer_of: Tensor) -> NeuronGraph:
    nodes = len(layer_of)
    if not found:
        empty = torch.zeros(0, dtype=torch.int64)
        return NeuronGraph(torch.zeros(nodes + 1, dtype=torch.int64), empty, torch.zeros(0), layer_of)
    shares = []
    for target, _, weight in found:
        # Every bundle of edges has the same say in a row, whatever the unit of its weights.
        total = torch.zeros(nodes).index_add_(0, target, weight)
        shares.append(weight / total[target])
    target = torch.cat([edges[0] for edges in found])
    csr = Csr.from_edges(torch.cat([edges[1] for edges in found]), target, nodes)
    assert csr.order is not None
    weight = torch.cat(shares)[csr.order]
    rows = target[csr.order]
    total = torch.zeros(nodes).index_add_(0, rows, weight)
    return NeuronGraph(csr.indptr, csr.indices, (weight / total[rows]).float(), layer_of)
