"""Running a captured graph node by node, with gates on its units: the reference of what a mask means."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onp.errors import InputError
from onp.model.victim import Victim

aten = torch.ops.aten


def constant(program: fx.GraphModule, node: fx.Node) -> Tensor:
    """The parameter, buffer or constant a `get_attr` node reads."""
    return operator.attrgetter(str(node.target))(program)


def logits_node(graph: fx.Graph) -> fx.Node:
    """The node whose value the network returns."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    return output.args[0]


def head_input(victim: Victim) -> str:
    """Name of the graph node that feeds the last linear or conv layer: the penultimate features."""
    heads = [node for node in victim.program.graph.nodes if node.target in (aten.linear.default, aten.conv2d.default)]
    if not heads:
        raise InputError("the network has no linear or conv layer, so it has no head")
    return heads[-1].args[0].name


def run_graph(
    program: fx.GraphModule, x: Tensor, visit: Callable[[fx.Node, Any], Any], keep: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Any]]:
    """Run the graph on `x`; every value passes through `visit(node, value)`; values are freed after their last reader.

    Floating parameters are cast to the dtype of `x`. Returns the logits and the values of the nodes named in `keep`.
    """
    graph = program.graph
    values: dict[fx.Node, Any] = {}
    kept: dict[str, Any] = {}
    readers = {node: len(node.users) for node in graph.nodes}
    last = logits_node(graph)
    for node in graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            value: Any = x
        elif node.op == "get_attr":
            value = constant(program, node)
            value = value.to(x.dtype) if value.is_floating_point() else value
        else:
            call = program.get_submodule(node.target) if node.op == "call_module" else node.target
            value = call(*fx.map_arg(node.args, values.__getitem__), **fx.map_arg(node.kwargs, values.__getitem__))
        values[node] = visit(node, value)
        if node.name in keep:
            kept[node.name] = values[node]
        for read in node.all_input_nodes:
            readers[read] -= 1
            if not readers[read] and read is not last:
                del values[read]
    missing = [name for name in keep if name not in kept]
    if missing:
        raise InputError(f"the captured graph has no node named {missing[0]}")
    return values[last], kept


def gated_forward(victim: Victim, x: Tensor, gates: Tensor, *, outputs: Sequence[str] = ()) -> Any:
    """Logits with every unit multiplied by its gate; a gate of 0 is the unit pruned, of 1 the unit kept.

    `x` normalised images float `[N, C, H, W]`; `gates` float `[U]`, or `[N, U]` for gates of each image.
    Returns logits `[N, classes]`, or `(logits, {name: value})` where `outputs` names graph nodes (their gated values).
    Differentiable in `x` and `gates`; float64 in, float64 arithmetic throughout.
    """
    if gates.shape[-1] != victim.units:
        raise InputError(f"gates have {gates.shape[-1]} entries and the network has {victim.units} units")
    gated = {name: layer for layer in victim.layers for name in layer.mask_nodes}

    def multiply(node: fx.Node, value: Any) -> Any:
        layer = gated.get(node.name)
        if layer is None:
            return value
        gate = gates[..., layer.offset : layer.offset + layer.units].to(value.dtype)
        return value * expand_units(gate, value.dim(), 1 if layer.kind == "conv" else -1)

    logits, kept = run_graph(victim.program, x, multiply, outputs)
    return (logits, kept) if outputs else logits


def expand_units(gate: Tensor, dims: int, dim: int) -> Tensor:
    """`[K]` or `[N, K]` reshaped to multiply a tensor of `dims` dimensions whose units lie along `dim`."""
    shape = [1] * dims
    shape[dim] = gate.shape[-1]
    if gate.dim() == 2:
        shape[0] = gate.shape[0]
    return gate.reshape(shape)
