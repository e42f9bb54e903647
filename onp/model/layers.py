"""Which units of a captured network can be pruned by editing weights, and how they hang together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from onp.model.capture import op_name, value

# Every output channel of these may depend on every input channel.
_MIXING = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "einsum",
        "bilinear",
        "mv",
        "scaled_dot_product_attention",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
    }
)
_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "_softmax"})
# Channel k of the output of these is made of channel k of every tensor input of the same width.
CHANNELWISE = frozenset(
    {
        "batch_norm",
        "instance_norm",
        "group_norm",
        "layer_norm",
        "rms_norm",
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "clamp_min",
        "leaky_relu",
        "prelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "sigmoid",
        "hardsigmoid",
        "tanh",
        "softplus",
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "neg",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean",
        "contiguous",
        "pad",
        "constant_pad_nd",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "expand",
    }
)
_RESHAPE = frozenset({"view", "reshape", "flatten", "unflatten"})


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


def find_layers(model: nn.Module, program: fx.GraphModule) -> tuple[tuple[Layer, ...], tuple[tuple[str, str], ...]]:
    """The prunable layers of `program` (from `onp.model.capture.capture(model, ...)`) in execution order.

    Returns also (name, reason) for every conv or linear layer that is left out.
    """
    uses, groups, stages = _uses(model, program), _groups(program.graph), _stages(program.graph)
    numbers: dict[fx.Node, int] = {}
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    for node in program.graph.nodes:
        if not _is_layer(node):
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
                units=_units(node),
                offset=layers[-1].offset + layers[-1].units if layers else 0,
                weight=str(weight),
                bias=bias,
                norm=tuple(str(_key(norm, i)) for norm in norms for i in (1, 2)),
                norm_stats=tuple(key for norm in norms for i in (3, 4) if (key := _key(norm, i))),
                node=node.name,
                mask_nodes=tuple(gate.name for gate in gates),
                group=numbers.setdefault(_root(groups, node), len(numbers)),
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


def _is_layer(node: fx.Node) -> bool:
    return "conv" in op_name(node) or op_name(node) == "linear"


def _argument(node: fx.Node, i: int) -> Any:
    return node.args[i] if len(node.args) > i else None


def _key(node: fx.Node, i: int) -> str | None:
    """The state-dict key that argument i of `node` reads, None when it reads none."""
    tensor = _argument(node, i)
    return str(tensor.target) if isinstance(tensor, fx.Node) and tensor.op == "get_attr" else None


def _units(node: fx.Node) -> int:
    output = value(node)
    assert output is not None
    return int(output.shape[-1 if op_name(node) == "linear" else 1])


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
        if _argument(node, i) is not None and key not in uses:
            return f"has a {what} that the network computes instead of storing it"
        if key is not None and uses[key] > 1:
            return f"has a {what} that {uses[key]} operations share"
    if _reaches_output(node):
        return "produces the logits"
    if _only_gates(node):
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


def _reaches_output(node: fx.Node) -> bool:
    """Whether a path leads to the logits without another layer that mixes channels."""
    stack, seen = list(node.users), set()
    while stack:
        step = stack.pop()
        if step.op == "output":
            return True
        if step not in seen and op_name(step) not in _MIXING:
            seen.add(step)
            stack += step.users
    return False


def _only_gates(node: fx.Node) -> bool:
    """Whether all a layer does is to scale other channels (squeeze-and-excitation, https://arxiv.org/abs/1709.01507).

    True when every path ends in a product, entered through a sigmoid-like function or as a small map that scales a
    larger one.
    """
    stack = [(user, node, False) for user in node.users]
    seen: set[tuple[fx.Node, fx.Node, bool]] = set()
    while stack:
        step, source, squashed = entry = stack.pop()
        if entry in seen:
            continue
        seen.add(entry)
        if op_name(step) == "mul" and all(isinstance(argument, fx.Node) for argument in step.args[:2]):
            if not squashed and _area(source) >= _area(step):
                return False
        elif op_name(step) in _MIXING or op_name(step) == "cat" or step.op == "output":
            return False
        else:
            squashed = squashed or op_name(step) in _GATES
            stack += [(user, step, squashed) for user in step.users]
    return True


def _area(node: fx.Node) -> int:
    """H * W of a [N, C, H, W] output, 1 for anything else."""
    output = value(node)
    return int(output.shape[2] * output.shape[3]) if isinstance(output, Tensor) and output.dim() == 4 else 1


def _groups(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Union-find parents of the conv and linear nodes: nodes of one root are tied channel by channel."""
    parent: dict[fx.Node, fx.Node] = {}
    owner: dict[fx.Node, fx.Node] = {}  # the layer whose channels a node's output holds
    for node in graph.nodes:
        sources = [owner[source] for source in node.all_input_nodes if source in owner]
        if _is_layer(node):
            parent[node] = owner[node] = node
            depthwise = op_name(node) == "conv2d" and _argument(node, 6) == _units(node) > 1
            sources = sources if depthwise else []
        elif not _keeps_channels(node, sources):
            continue
        if not sources:
            continue
        owner.setdefault(node, max(sources, key=_units))
        for source in sources:
            if _units(source) == _units(owner[node]):
                parent[_root(parent, source)] = _root(parent, owner[node])
    return parent


def _keeps_channels(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether the output of `node` still holds the channels of the layers `sources`, in their order."""
    output = value(node)
    if output is None or not sources:
        return False
    width = max(map(_units, sources))
    if op_name(node) in CHANNELWISE:
        return width in output.shape
    if op_name(node) == "cat":  # a class token before the patch tokens, not channels after channels
        return output.dim() == 3 and _argument(node, 1) in (1, -2) and output.shape[-1] == width
    before = value(node.args[0])
    if op_name(node) not in _RESHAPE or before is None or before.dim() < 2 or output.dim() < 2:
        return False
    return before.shape[1] == output.shape[1] == width or before.shape[-1] == output.shape[-1] == width


def _root(parent: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while parent[node] is not node:
        node = parent[node]
    return node


def _stages(graph: fx.Graph) -> dict[fx.Node, int]:
    """Per node, the number of ops before and at it that made the feature map smaller, on the longest such path.

    Where maps of different sizes meet (a squeeze-and-excitation product), only those as large as the result count.
    """
    stages: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = [source for source in node.all_input_nodes if source in stages]
        if not inputs:
            stages[node] = 0
            continue
        same = [source for source in inputs if _area(source) == _area(node)]
        smaller = _is_map(node) and not same and _area(node) < max(map(_area, inputs))
        stages[node] = max(stages[source] for source in (same or inputs)) + smaller
    return stages


def _is_map(node: fx.Node) -> bool:
    output = value(node)
    return output is not None and output.dim() == 4
