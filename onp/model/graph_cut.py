"""A captured network in two parts, where one value alone leads on to the logits."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from onp.model.capture import op_name, value
from onp.model.channel_flow import is_layer
from onp.model.interpret import constant, logits_node


@dataclass(frozen=True, eq=False)
class GraphCut:
    """The parts before and behind a node; made by `GraphCut.of`. Both are differentiable."""

    program: fx.GraphModule
    node: fx.Node  #: the image, or a value `[N, ...]` that all there is to the logits passes through
    depth: float  #: share of the convs and linear layers that lie before the cut

    @staticmethod
    def of(program: fx.GraphModule, depth: float) -> GraphCut:
        """Cut at the last value with at most this share of the convs and linear layers before it, at the image if need be.

        Args:
            program: a captured network, see `onp.model.victim.Victim`.
            depth: 0 to 1.
        """
        flow = _flow(program.graph)
        total = sum(map(is_layer, flow))
        layers, read, cut = 0, 0, (_image(program.graph), 0.0)
        for node, position in flow.items():
            layers += is_layer(node)
            alone = read <= position  # all values before it are read by now
            read = max([read, *(flow[user] for user in node.users if user in flow)])
            if alone and layers <= depth * total and node.op != "output" and _is_batch(node):
                cut = node, layers / max(1, total)
        return GraphCut(program, *cut)

    def features(self, x: Tensor) -> Tensor:
        """The value at the cut of normalised images `[N, C, H, W]`."""
        return self._run(self._early, self.node, {_image(self.program.graph): x}, {})

    def logits(self, features: Tensor, replaced: Mapping[str, Tensor] | None = None) -> Tensor:
        """The logits, `[N, classes]`, of the value at the cut.

        Args:
            features: as `features` returns them.
            replaced: parameters to use in place of those of the network, by state-dict key.
        """
        own = operator.attrgetter
        used = {own(key)(self.program).data_ptr(): tensor for key, tensor in (replaced or {}).items()}
        return self._run(self._late, logits_node(self.program.graph), {self.node: features}, used)

    def late_parameters(self) -> dict[str, Tensor]:
        """The parameters that only the part behind the cut reads, by state-dict key; one that has two keys is there once."""
        early = {constant(self.program, node).data_ptr() for node in self._early if node.op == "get_attr"}
        names = dict(self.program.named_parameters(remove_duplicate=False))
        late: dict[int, str] = {}
        for node in self._late:
            key = str(node.target)
            if node.op == "get_attr" and key in names and names[key].data_ptr() not in early:
                late.setdefault(names[key].data_ptr(), key)
        return {key: names[key].detach() for key in late.values()}

    @cached_property
    def _early(self) -> list[fx.Node]:
        return _between(_image(self.program.graph), self.node)

    @cached_property
    def _late(self) -> list[fx.Node]:
        return _between(self.node, logits_node(self.program.graph))

    def _run(self, steps: Sequence[fx.Node], end: fx.Node, values: dict[fx.Node, Any], used: Mapping[int, Tensor]) -> Tensor:
        """The value of `end`, by steps from one known value; `used` replaces tensors, by their address."""
        (x,) = values.values()
        last = {source: node for node in steps for source in node.all_input_nodes}
        for node in steps:
            if node.op == "get_attr":
                tensor = constant(self.program, node)
                values[node] = used.get(tensor.data_ptr(), tensor)
            elif _is_batch_size(node):
                values[node] = x.shape[0]
            else:
                call: Any = node.target
                values[node] = call(*fx.map_arg(node.args, values.__getitem__), **fx.map_arg(node.kwargs, values.__getitem__))
                for source in node.all_input_nodes:
                    if last[source] is node and source is not end:
                        values.pop(source, None)
        result: Tensor = values[end]
        return result


def _image(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "placeholder")


def _between(start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes that `end`, the last of them, is computed from beside `start`, in execution order."""
    needed: set[fx.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node not in needed and node is not start:
            needed.add(node)
            stack += [] if _is_batch_size(node) else node.all_input_nodes
    return [node for node in start.graph.nodes if node in needed]


def _flow(graph: fx.Graph) -> dict[fx.Node, int]:
    """The nodes that depend on the pixels, in execution order, with their positions; the size of the batch does not."""
    flow: dict[fx.Node, int] = {}
    for node in graph.nodes:
        follows = node.op == "placeholder" or not flow.keys().isdisjoint(node.all_input_nodes)
        if follows and not _is_batch_size(node):
            flow[node] = len(flow)
    return flow


def _is_batch(node: fx.Node) -> bool:
    """Whether a node's output holds one row for each image."""
    output, images = value(node), value(_image(node.graph))
    return output is not None and images is not None and output.dim() > 0 and str(output.shape[0]) == str(images.shape[0])


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node reads the number of images from the shape of a tensor."""
    if op_name(node) != "sym_size" or node.args[1] != 0:
        return False
    return isinstance(node.args[0], fx.Node) and _is_batch(node.args[0])
