"""What the batch norms remember of the training images that the clean ones do not show.

A batch norm keeps the mean of each channel over the images it was trained on. Where a share of them carried a trigger, that
mean lies away from the mean over clean images, by the share times what the trigger changes in the channel: a backdoored
network with batch norms carries an average of its own attack with it, whatever the trigger looks like. (That the statistics
differ is what BNP prunes by: Zheng et al., NeurIPS 2022, "Pre-activation Distributions Expose Backdoor Neurons".)

Another mix of classes moves the means too. Those moves lie in the span of the class means, which clean images show, and what
lies in that span is taken out: what is left is not explained by any mix of the clean images' classes. What was taken out says
something of its own: a trigger that makes images look like the target class to the last layers hides there, and then more of
the training images looked like that class than of the clean ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onp.model.capture import op_name
from onp.model.interpret import constant, run_graph
from onp.model.layers import CHANNELWISE
from onp.model.victim import Victim

SHARE = 0.1  # of the training images, taken to carry the trigger; what is remembered is divided by it
LATE = 0.25  # share of the norms, the last ones, that are asked which class they pull to: there channels mean classes
CHANNELS_PER_CLASS = 2  # fewer, and a mix of classes could explain anything


@dataclass(frozen=True, eq=False)
class Memory:
    """Per batch norm of the captured graph, in execution order, what it remembers beyond the clean images' classes."""

    shifts: dict[str, Tensor]  #: node name: float32 [C] on the CPU, in running standard deviations; above 0: more in training
    last: Tensor | None = None  #: what the last norm reads of each image, mean over its positions: float64 [N, C] on the CPU

    def of_units(self, victim: Victim) -> Tensor:
        """The shift of each unit, float32 [V]; 0 where no norm reads it.

        A unit has the shift of its own norm, or of the first norm that reads the sum it is added to.
        """
        out = torch.zeros(victim.units)
        readers = _reading_norms(victim)
        for layer in victim.layers:
            shift = self.shifts.get(readers.get(layer.node, ""))
            if shift is not None and len(shift) == layer.units:
                out[layer.offset : layer.offset + layer.units] = shift
        return out


def remember(victim: Victim, images: Tensor, labels: Tensor) -> Memory:
    """Compare the running means with those of clean images float32 `[N, C, H, W]` in [0, 1] with labels int64 `[N]`.

    One forward pass. Norms without running statistics or with too few channels for the number of classes are left out.
    """
    shifts = {}
    norms = norms_of(victim.program)
    means = channel_means(victim, norms, images)
    for norm in norms:
        if means[norm.name].shape[1] >= CHANNELS_PER_CLASS * len(labels.unique()):
            shift, span, _ = against_classes(victim, norm, means[norm.name], labels)
            shifts[norm.name] = (shift - span @ _combination(span, shift)).float()
    return Memory(shifts, means[norms[-1].name] if norms else None)


def class_mix(victim: Victim, images: Tensor, labels: Tensor, memory: Memory) -> Tensor | None:
    """What share more of the training images than of the clean ones looked like each class, float32 `[classes]`.

    Images and labels as for `remember`, which gave `memory`. The mix of class means that explains the last norm's running mean
    best, beside the move that random crops make, with which networks are trained: by that move alone a clean network seems to
    have seen more of the class it takes odd images for. None where there is no norm with running statistics, or the last has
    too few channels.
    """
    last, classes = norms_of(victim.program)[-1:], labels.unique().cpu()
    channels = memory.last
    if channels is None or channels.shape[1] < CHANNELS_PER_CLASS * len(classes):
        return None
    crops = channel_means(victim, last, cropped(images))[last[0].name]
    shift, span, spread = against_classes(victim, last[0], channels, labels)
    moved = (crops.mean(0) - channels.mean(0)) / spread
    weights = _combination(torch.column_stack((span, moved)), shift)[:-1]
    return torch.zeros(victim.classes).index_copy(0, classes, weights.float())


@torch.no_grad()
def channel_means(victim: Victim, norms: list[fx.Node], images: Tensor) -> dict[str, Tensor]:
    """What each norm reads of each image, mean over its positions: float64 `[N, C]` on the CPU."""
    means: dict[str, list[Tensor]] = {norm.name: [] for norm in norms}
    read: dict[fx.Node, list[str]] = {}
    for norm in norms:
        read.setdefault(argument(norm, 0), []).append(norm.name)

    def record(node: fx.Node, value: Any) -> Any:
        for name in read.get(node, ()):
            means[name].append(pooled(value))
        return value

    for part in images.split(64):
        run_graph(victim.program, victim.normalisation(part.to(victim.device)), record)
    return {name: torch.cat(parts).double().cpu() for name, parts in means.items()}


def pooled(value: Tensor) -> Tensor:
    """The mean over positions: `[N, C, ...]` to `[N, C]`."""
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def against_classes(victim: Victim, norm: fx.Node, channels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far the running means lie from the clean ones `[C]`, so the classes' means `[C, K]`, and the unit of both `[C]`."""
    running, variance = (constant(victim.program, argument(norm, i)).double().cpu() for i in (3, 4))
    spread, middle, given = variance.clamp_min(1e-12).sqrt(), channels.mean(0), labels.cpu()
    by_class = torch.stack([channels[given == k].mean(0) for k in given.unique()]) - middle
    return (running - middle) / spread, by_class.T / spread[:, None], spread


def _combination(span: Tensor, shift: Tensor) -> Tensor:
    """The shortest weights `[K]` of the columns of `span` that come nearest to `shift`; the classes' means sum to nothing."""
    return torch.linalg.lstsq(span, shift[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]


def cropped(images: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its size, black where it is left, as random crops do."""
    generator = torch.Generator().manual_seed(0)
    height, width = images.shape[2:]
    reach = max(1, min(height, width) // 8)
    places = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    padded = F.pad(images, (reach,) * 4)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)])


@torch.no_grad()
def pulls(victim: Victim, memory: Memory, images: Tensor, labels: Tensor) -> Tensor | None:
    """How far what is remembered pulls images of other classes to each class, float32 `[classes]`.

    The late norms' outputs are shifted, one norm at a time, as a trigger on `SHARE` of the training images would have to shift
    them; a class's pull is the rise of its logit, in standard deviations of all logits, mean over images and norms.
    None without such a norm.
    """
    names = list(memory.shifts)
    late = names[-max(1, round(LATE * len(norms_of(victim.program)))) :]
    if not late:
        return None
    inputs = victim.normalisation(images.to(victim.device))
    plain = torch.cat([victim.model(part) for part in inputs.split(64)]).cpu()
    rises = []
    for name in late:

        def push(node: fx.Node, value: Any, name: str = name) -> Any:
            if node.name != name:
                return value
            scale = constant(victim.program, node.args[1]) if isinstance(node.args[1], fx.Node) else 1.0
            shift = scale * memory.shifts[name].to(value) / SHARE
            return value + shift.view(1, -1, *[1] * (value.dim() - 2))

        pushed = torch.cat([run_graph(victim.program, part, push)[0] for part in inputs.split(64)]).cpu()
        rises.append((pushed - plain) / plain.std())
    rise = torch.stack(rises).mean(0)
    return torch.stack([rise[labels.cpu() != k, k].mean() for k in range(victim.classes)])


def norms_of(program: fx.GraphModule) -> list[fx.Node]:
    """Batch norms with stored statistics, in execution order."""
    nodes = [node for node in program.graph.nodes if op_name(node) == "batch_norm"]
    return [node for node in nodes if all(isinstance(node.args[i], fx.Node) for i in (3, 4))]


def argument(norm: fx.Node, i: int) -> fx.Node:
    """The node that a norm takes as its argument i: 0 what it reads, 3 and 4 its running mean and variance."""
    node = norm.args[i]
    assert isinstance(node, fx.Node)
    return node


def _reading_norms(victim: Victim) -> dict[str, str]:
    """Per layer node, the first batch norm that reads it through sums and other channelwise operations of its width."""
    readers = {}
    for layer in victim.layers:
        reached = {layer.node}
        for node in victim.program.graph.nodes:
            if not any(source.name in reached for source in node.all_input_nodes):
                continue
            if op_name(node) == "batch_norm":
                readers[layer.node] = node.name
                break
            if op_name(node) in CHANNELWISE:
                reached.add(node.name)
    return readers
