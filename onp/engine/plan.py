"""Captured graph -> a straight list of fused steps, with the values that are alive between them."""

import math
import operator
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from onp.engine.steps import Activation, ConvStep, LinearStep, MaskSlice, OpStep, Run, ScaleStep, Step
from onp.model.interpret import constant, expand_units, logits_node, run_graph
from onp.model.victim import Victim

aten = torch.ops.aten
ACTIVATIONS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.silu.default, aten.hardswish.default}
KNOWN_OPERATORS = ACTIVATIONS | {
    aten.conv2d.default,
    aten.linear.default,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
    aten.cat.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dims,
    aten.sym_size.int,
}
# stride, padding, dilation, groups of aten.conv2d where a graph leaves them out
CONV_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
# What one output element of any step costs beside its multiplications, in FLOPs: moving it through the cache.
FLOPS_PER_ELEMENT = 50


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps in execution order."""

    input: str  #: name of the value that the images are
    output: str  #: name of the logits
    steps: tuple[Step, ...]
    live: tuple[tuple[str, ...], ...]  #: [i]: the values that steps i and later read; the last entry is the logits alone
    cost: tuple[float, ...]  #: [i]: FLOPs of step i for one image
    shapes: dict[str, tuple[int, ...] | None]  #: of a value without its batch dimension; () for a number, None for a tuple

    @property
    def units(self) -> int:
        """U, the length of a mask."""
        return max(step.mask_slice.offset + step.mask_slice.units for step in self.steps if step.mask_slice is not None)

    def widest_bytes(self, value_bytes: int) -> int:
        """Most bytes that the values of one image take while one step runs, those it reads and the one it makes."""
        before = [self.image_bytes(index, value_bytes) or 0 for index in range(len(self.steps))]
        made = [value_bytes * math.prod(self.shapes[step.name] or ()) for step in self.steps]
        return max(read + output for read, output in zip(before, made, strict=True))

    def image_bytes(self, index: int, value_bytes: int) -> int | None:
        """Bytes of one image's values alive before step `index`, the image aside; None where one is a tuple."""
        shapes = [self.shapes[name] for name in self.live[index] if name != self.input]
        return None if None in shapes else sum(math.prod(shape or ()) for shape in shapes) * value_bytes

    @property
    def unfused(self) -> tuple[str, ...]:
        """Names of the nodes that no fused step and no known operator covers: they run as the operator they were."""
        return tuple(step.name for step in self.steps if isinstance(step, OpStep) and not step.known)


_PLANS: dict[int, dict[frozenset[str], tuple[tuple[int, ...], Plan]]] = {}  # by the id of a living victim


def plan_of(victim: Victim, keep: Iterable[str] = ()) -> Plan:
    """The plan of a victim: conv and linear layers fused with the norm, residual addition and activation after them.

    It is made once in the life of the victim, and again only after its weights were edited in place.

    Args:
        victim: the network.
        keep: graph nodes whose values are wanted, so that nothing after them is fused with them.
    """
    nodes, versions = frozenset(keep), tuple(tensor._version for tensor in victim.program.state_dict().values())
    if id(victim) not in _PLANS:
        _PLANS[id(victim)] = {}
        weakref.finalize(victim, _PLANS.pop, id(victim), None)
    plans = _PLANS[id(victim)]
    if nodes not in plans or plans[nodes][0] != versions:
        plans[nodes] = versions, _Fuser(victim, nodes).plan()
    return plans[nodes][1]


@dataclass
class _Fuser:
    victim: Victim
    keep: frozenset[str]
    steps: dict[fx.Node, Step] = field(default_factory=dict)  # by the last node each stands for
    absorbed: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        program = self.victim.program
        self.graph = program.graph
        self.gates = {
            name: MaskSlice(layer.offset, layer.units, 1 if layer.kind == "conv" else -1)
            for layer in self.victim.layers
            for name in layer.mask_nodes
        }
        self.output = logits_node(self.graph)
        self.shape: dict[str, tuple[int, ...] | None] = {}
        self.constants: dict[fx.Node, Any] = {}

        def record(node: fx.Node, value: Any) -> Any:
            self.shape[node.name] = (
                tuple(value.shape[1:]) if isinstance(value, Tensor) else () if isinstance(value, int) else None
            )
            reads = node.all_input_nodes
            if node.op == "get_attr":
                self.constants[node] = constant(program, node)
            elif node.op == "call_function" and reads and all(read in self.constants for read in reads):
                self.constants[node] = value
            return value

        with torch.no_grad():
            run_graph(program, torch.zeros(2, *self.victim.input_shape, device=self.victim.device), record)

    def plan(self) -> Plan:
        nodes = [
            node for node in self.graph.nodes if node.op in ("call_function", "call_module") and node not in self.constants
        ]
        for node in reversed(nodes):  # of two convs that are added, the later one takes the addition in
            if self._is_conv(node) or self._is_linear(node):
                self._fuse_layer(node)
        for node in nodes:
            if node not in self.absorbed and (norm := self._norm(node)):
                scale, shift = (part.float() for part in norm)
                end, activation = self._activation(node)
                step = ScaleStep(end.name, (node.all_input_nodes[0].name,), self.gates.get(node.name), scale, shift, activation)
                self._emit(end, step, {node})
        for node in nodes:
            if node not in self.absorbed:
                self._emit(node, self._op_step(node), set())
        steps = tuple(self.steps[node] for node in self.graph.nodes if node in self.steps)
        (image,) = (node.name for node in self.graph.nodes if node.op == "placeholder")
        names = [image, *(step.name for step in steps)]
        return Plan(
            input=image,
            output=self.output.name,
            steps=steps,
            live=_liveness(steps, self.output.name),
            cost=tuple(_flops(step, self.shape[step.name]) for step in steps),
            shapes={name: self.shape[name] for name in names},
        )

    def _emit(self, end: fx.Node, step: Step, covered: set[fx.Node]) -> None:
        self.steps[end] = step
        self.absorbed |= covered | {end}

    def _is_conv(self, node: fx.Node) -> bool:
        return node.target is aten.conv2d.default and all(read in self.constants for read in node.all_input_nodes[1:])

    def _is_linear(self, node: fx.Node) -> bool:
        return node.target is aten.linear.default and all(read in self.constants for read in node.all_input_nodes[1:])

    def _fuse_layer(self, node: fx.Node) -> None:
        args: tuple[Any, ...] = node.args
        weight = self.constants[args[1]].detach()
        bias = self.constants[args[2]].detach() if len(args) > 2 and args[2] is not None else None
        gate, end, covered = self.gates.get(node.name), node, {node}
        follower = self._only_reader(node)
        norm = self._norm(follower) if follower else None
        if follower and norm and (self._is_conv(node) or len(self.shape[node.name] or ()) == 1):
            norm_gate = self.gates.get(follower.name)
            if gate is None or gate == norm_gate:
                scale, shift = norm
                shift = shift if bias is None else shift + bias.double() * scale
                weight = (weight.double() * expand_units(scale, weight.dim(), 0)).to(weight.dtype)
                bias, gate, end = shift.to(weight.dtype), norm_gate, follower
                covered.add(end)
        inputs = [args[0].name]
        if self._is_conv(node) and (total := self._addition(end)):
            (other,) = (read for read in total.all_input_nodes if read is not end)
            inputs.append(other.name)
            end = total
            covered.add(end)
        end, activation = self._activation(end)
        if self._is_linear(node):
            self._emit(end, LinearStep(end.name, tuple(inputs), gate, weight, bias, activation), covered)
            return
        stride, padding, dilation, groups = (*args[3:], *CONV_DEFAULTS[max(0, len(args) - 3) :])
        step = ConvStep(
            end.name,
            tuple(inputs),
            gate,
            weight,
            bias,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
            activation,
        )
        self._emit(end, step, covered)

    def _only_reader(self, node: fx.Node) -> fx.Node | None:
        readers = list(node.users)
        wanted = node is self.output or node.name in self.keep
        return readers[0] if len(readers) == 1 and not wanted and readers[0] not in self.absorbed else None

    def _norm(self, node: fx.Node) -> tuple[Tensor, Tensor] | None:
        """A norm in evaluation mode as `x * scale + shift` by channel, both float64 `[K]`; None for anything else."""
        if node.target is not aten.batch_norm.default:
            return None
        args: tuple[Any, ...] = node.args
        (weight, bias, mean, var), training, eps = args[1:5], args[5], args[7]
        parts = [weight, bias, mean, var]
        if training or mean is None or any(part is not None and part not in self.constants for part in parts):
            return None
        mean, var = self.constants[mean].double(), self.constants[var].double()
        scale = 1 / torch.sqrt(var + eps)
        if weight is not None:
            scale = scale * self.constants[weight].detach().double()
        shift = -mean * scale
        if bias is not None:
            shift = shift + self.constants[bias].detach().double()
        return scale, shift

    def _addition(self, end: fx.Node) -> fx.Node | None:
        """The node that adds a value of the same shape to `end`, where it can be taken into the step."""
        total = self._only_reader(end)
        if total is None or total.target is not aten.add.Tensor or total.kwargs or total.name in self.gates:
            return None
        reads = total.all_input_nodes
        if len(reads) != 2 or any(self.shape[read.name] != self.shape[total.name] or read in self.constants for read in reads):
            return None
        return total

    def _activation(self, end: fx.Node) -> tuple[fx.Node, Activation | None]:
        follower = self._only_reader(end)
        if follower is None or follower.target not in ACTIVATIONS or follower.kwargs or follower.name in self.gates:
            return end, None
        self.absorbed.add(follower)
        return follower, Activation(follower.target, tuple(follower.args[1:]))

    def _op_step(self, node: fx.Node) -> OpStep:
        reads = [read for read in node.all_input_nodes if read not in self.constants]
        target = self.victim.program.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        known = node.target in KNOWN_OPERATORS or node.target is operator.getitem
        if target is aten.view.default:
            target = aten.reshape.default  # our values are channels-last, where a view may not exist
        return OpStep(
            node.name,
            tuple(read.name for read in reads),
            self.gates.get(node.name),
            self._call(node, target, reads),
            known,
            target,
            node.args,
        )

    def _call(self, node: fx.Node, target: Any, reads: list[fx.Node]) -> Run:
        args, kwargs, constants = node.args, node.kwargs, self.constants

        def call(*values: Any) -> Any:
            found = dict(zip(reads, values, strict=True))

            def fill(read: fx.Node) -> Any:
                return found[read] if read in found else constants[read]

            return target(*fx.map_arg(args, fill), **fx.map_arg(kwargs, fill))

        return call


def _liveness(steps: tuple[Step, ...], output: str) -> tuple[tuple[str, ...], ...]:
    alive = {output}
    live = [tuple(alive)]
    for step in reversed(steps):
        alive = (alive - {step.name}) | set(step.inputs)
        live.append(tuple(sorted(alive)))
    return tuple(reversed(live))


def _flops(step: Step, shape: tuple[int, ...] | None) -> float:
    products = step.weight[0].numel() if isinstance(step, ConvStep | LinearStep) else 0
    return math.prod(shape or ()) * (2.0 * products + FLOPS_PER_ELEMENT)


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    """For height and width; one number stands for both."""
    return sizes[0], sizes[-1]
