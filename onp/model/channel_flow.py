"""How channels go through a captured network: which layers are tied channel by channel, and where channels end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

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


def is_layer(node: fx.Node) -> bool:
    return "conv" in op_name(node) or op_name(node) == "linear"


def argument(node: fx.Node, i: int) -> Any:
    return node.args[i] if len(node.args) > i else None


def unit_count(node: fx.Node) -> int:
    output = value(node)
    assert output is not None
    return int(output.shape[-1 if op_name(node) == "linear" else 1])


def reaches_output(node: fx.Node) -> bool:
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


def only_gates(node: fx.Node) -> bool:
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


def tied_layers(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Union-find parents of the conv and linear nodes: nodes of one root are tied channel by channel."""
    parent: dict[fx.Node, fx.Node] = {}
    owner: dict[fx.Node, fx.Node] = {}  # the layer whose channels a node's output holds
    for node in graph.nodes:
        sources = [owner[source] for source in node.all_input_nodes if source in owner]
        if is_layer(node):
            parent[node] = owner[node] = node
            depthwise = op_name(node) == "conv2d" and argument(node, 6) == unit_count(node) > 1
            sources = sources if depthwise else []
        elif not _keeps_channels(node, sources):
            continue
        if not sources:
            continue
        owner.setdefault(node, max(sources, key=unit_count))
        for source in sources:
            if unit_count(source) == unit_count(owner[node]):
                parent[root(parent, source)] = root(parent, owner[node])
    return parent


def _keeps_channels(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether the output of `node` still holds the channels of the layers `sources`, in their order."""
    output = value(node)
    if output is None or not sources:
        return False
    width = max(map(unit_count, sources))
    if op_name(node) in CHANNELWISE:
        return width in output.shape
    if op_name(node) == "cat":  # a class token before the patch tokens, not channels after channels
        return output.dim() == 3 and argument(node, 1) in (1, -2) and output.shape[-1] == width
    before = value(node.args[0])
    if op_name(node) not in _RESHAPE or before is None or before.dim() < 2 or output.dim() < 2:
        return False
    return before.shape[1] == output.shape[1] == width or before.shape[-1] == output.shape[-1] == width


def root(parent: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while parent[node] is not node:
        node = parent[node]
    return node


def stages_of(graph: fx.Graph) -> dict[fx.Node, int]:
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
