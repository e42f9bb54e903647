"""Which units of a captured network can be pruned by editing weights, and how they hang together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from onp.model.capture import op_name, value
from onp.model.channel_flow import argument, is_layer, only_gates, reaches_output, root, stages_of, tied_layers, unit_count


@dataclass(frozen=True)
class Layer:
    """A conv2d or linear layer whose output units can be pruned by editing the state dict.

    Zeroing row k of `weight`, of `bias` and of every tensor in `norm` changes the network's output exactly as
    multiplying channel k of the outputs of all `mask_nodes` by zero does. The channel dimension of those outputs is 1
    for a conv ([N, K, H, W]) and the last one for a linear layer ([N, K], [N, T, K], ...).
    """

    name: str  #: module path, "layer1.0.conv1"
    kind: str  #: "conv" or "linear"
    units: int  #: K
    offset: int  #: position of unit 0 in the flat mask
    weight: str  #: state-dict key; row k belongs to unit k
    bias: str | None  #: state-dict key, or None
    norm: tuple[str, ...]  #: scale and shift of the batch norm that reads only this layer (of each, if several), or ()
    norm_stats: tuple[str, ...]  #: running mean and variance of the same norms, where they keep any
    node: str  #: the conv2d or linear node of the captured graph
    mask_nodes: tuple[str, ...]  #: the nodes to gate: the norms, the layer's own node, or all of them
    group: int  #: layers of one group are tied channel by channel by sums, products or depthwise convs
    stage: int  #: spatial down-samplings between the input and this layer

    @property
    def keys(self) -> tuple[str, ...]:
        """State-dict keys of all tensors of which row k belongs to unit k: weight, bias and norm."""
        return (self.weight, *([self.bias] if self.bias else []), *self.norm)


def find_layers(model: nn.Module, program: fx.GraphModule) -> tuple[tuple[Layer, ...], tuple[tuple[str, str], ...]]:
    """The prunable layers of `program` (from `onp.model.capture.capture(model, ...)`) in execution order.

    Returns also (name, reason) for every conv or linear layer that is left out.
    """
    uses, groups, stages = _uses(model, program), tied_layers(program.graph), stages_of(program.graph)
    numbers: dict[fx.Node, int] = {}
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    for node in program.graph.nodes:
        if not is_layer(node):
            continue
        weight, bias = _key(node, 1), _key(node, 2)
        name = weight.removesuffix(".weight") if weight else _module_path(node)
        reason = _why_not(node, uses)
        if reason is not None:
            skipped.setdefault(name, reason)
            continue
        norms = [user for user in node.users if _is_own_norm(user, node, uses)]
        # Readers other than the norms see the layer's own output, which the weight edit makes zero.
        gates = norms if norms and len(norms) == len(node.users) else [node, *norms]
        layers.append(
            Layer(
                name=name,
                kind=op_name(node).removesuffix("2d"),
                units=unit_count(node),
                offset=layers[-1].offset + layers[-1].units if layers else 0,
                weight=str(weight),
                bias=bias,
                norm=tuple(str(_key(norm, i)) for norm in norms for i in (1, 2)),
                norm_stats=tuple(key for norm in norms for i in (3, 4) if (key := _key(norm, i))),
                node=node.name,
                mask_nodes=tuple(gate.name for gate in gates),
                group=numbers.setdefault(root(groups, node), len(numbers)),
                stage=stages[node.args[0]],
            )
        )
    seen = {layer.name for layer in layers} | skipped.keys()
    aliases = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not _known(name, module, seen, aliases):
            skipped[name] = "is not used as a plain conv2d or linear operation on the way to the logits"
    return tuple(layers), tuple(skipped.items())


def _known(name: str, module: nn.Module, seen: set[str], aliases: Mapping[int, str]) -> bool:
    """Whether a module was met in the graph, under this name or under another one for the same weight."""
    other = aliases.get(id(getattr(module, "weight", None)), "")
    return name in seen or other.removesuffix(".weight") in seen


def _key(node: fx.Node, i: int) -> str | None:
    """The state-dict key that argument i of `node` reads, None when it reads none."""
    tensor = argument(node, i)
    return str(tensor.target) if isinstance(tensor, fx.Node) and tensor.op == "get_attr" else None


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


def _uses(model: nn.Module, program: fx.GraphModule) -> dict[str, int]:
    """Per state-dict key, how many operations read its memory, under whatever name."""
    state = model.state_dict(keep_vars=True)
    readers: Counter[int] = Counter()
    keys: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target in state:
            pointer = state[node.target].data_ptr()
            readers[pointer] += len(node.users)
            keys[node.target] = pointer
    return {key: readers[pointer] for key, pointer in keys.items()}


def _why_not(node: fx.Node, uses: Mapping[str, int]) -> str | None:
    """Why the units of a conv or linear node cannot be pruned by editing the state dict; None when they can."""
    if op_name(node) not in ("conv2d", "linear"):
        return f"is a {op_name(node)}, and only conv2d and linear layers are pruned"
    for i, what in ((1, "weight"), (2, "bias")):
        key = _key(node, i)
        if argument(node, i) is not None and key not in uses:
            return f"has a {what} that the network computes instead of storing it"
        if key is not None and uses[key] > 1:
            return f"has a {what} that {uses[key]} operations share"
    if reaches_output(node):
        return "produces the logits"
    if only_gates(node):
        return "only scales other channels, so zero weights would not switch anything off"
    return None


def _is_own_norm(norm: fx.Node, layer: fx.Node, uses: Mapping[str, int]) -> bool:
    """Whether `norm` is a batch norm of this layer's units alone, with a stored scale and shift of its own."""
    output = value(layer)
    if op_name(norm) != "batch_norm" or norm.args[0] is not layer or output is None:
        return False
    # batch_norm normalises dimension 1, which is the unit dimension of a linear layer's [N, K] alone.
    if op_name(layer) == "linear" and output.dim() != 2:
        return False
    return all(uses.get(_key(norm, i) or "", 0) == 1 for i in (1, 2))
