"""NAD: distil the attention of a fine-tuned teacher (Li et al. 2021, https://arxiv.org/abs/2101.05930).

The teacher is the victim fine-tuned for 10 epochs; the student descends CE + sum of beta * MSE of the attention maps, A = the
channel sum of squares, normalised by image. SGD 0.01 for 20 epochs, then 1e-4, 100 in all, weight decay 1e-4. Maps are the
last ones of the last three sizes of more than one pixel that all there is to the logits passes through: the sum that ends a
block, or the last conv with its norm, and the activation of either. A map of one pixel is always 1 after normalising and
teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.capture import op_name, value
from onp.model.interpret import run_graph
from onp.model.tuning.common import Schedule, batches, descend, trainable, with_weights
from onp.model.tuning.config import TuneConfig
from onp.model.tuning.ft import fine_tuned
from onp.model.victim import Victim

TEACHER_EPOCHS, EPOCHS, FAST_EPOCHS = 10, 100, 20
FAST_RATE, SLOW_RATE = 0.01, 1e-4
BETAS = (500.0, 1000.0, 1000.0)  # first to last map

_SUMS = frozenset({"add", "cat"})
_NORMS = frozenset({"batch_norm", "group_norm", "instance_norm"})
_ACTIVATIONS = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "leaky_relu", "prelu", "elu", "gelu", "silu", "mish", "hardswish"}
)


def tune(victim: Victim, clean: ImageSet, config: TuneConfig) -> Victim:
    """The student. Raises InputError where the network has no map to compare."""
    student = trainable(victim, config.pruned)
    places = map_modules(victim)
    teacher = fine_tuned(victim, clean, config, TEACHER_EPOCHS, "NAD teacher").eval().requires_grad_(False)
    optimiser = torch.optim.SGD(student.parameters(), FAST_RATE, momentum=0.9, weight_decay=1e-4)
    with outputs(student, places) as mine, outputs(teacher, places) as theirs:
        for done, x, y in batches(victim, clean, config, Schedule("NAD", epochs=EPOCHS, passes=2)):
            for group in optimiser.param_groups:
                group["lr"] = FAST_RATE if done < FAST_EPOCHS / EPOCHS else SLOW_RATE
            loss = F.cross_entropy(student(x), y)
            with torch.no_grad():
                teacher(x)
            for beta, place in zip(BETAS[-len(places) :], places, strict=True):
                loss = loss + beta * F.mse_loss(attention(mine[place]), attention(theirs[place]))
            descend(optimiser, loss)
    return with_weights(victim, student)


def attention(maps: Tensor) -> Tensor:
    """[N, pixels], of length 1 per image, from maps [N, C, H, W]."""
    return F.normalize(maps.square().sum(1).flatten(1), dim=1)


def map_modules(victim: Victim) -> tuple[str, ...]:
    """Paths of the modules whose outputs are the maps, at most three, from the first to the last.

    Of each size the last map counts that some module puts out: an activation that no module computes is left off.
    Raises InputError where there is none.
    """
    images = torch.rand((2, *victim.input_shape), generator=torch.Generator().manual_seed(0))
    x = victim.normalisation(images.to(victim.device))
    sizes = whole_maps(victim.program.graph)
    with torch.no_grad(), outputs(victim.model, [path for path, _ in victim.model.named_modules()]) as found:
        victim.model(x)
        _, values = run_graph(victim.program, x, lambda _, value: value, [name for names in sizes for name in names])
    by_size = [[path for name in reversed(names) if (path := _module_of(values[name], found)) is not None] for names in sizes]
    places = tuple(paths[0] for paths in by_size if paths)
    if not places:
        raise InputError("The network has no feature maps of more than one pixel for NAD to compare.")
    return places[-len(BETAS) :]


def whole_maps(graph: fx.Graph) -> list[list[str]]:
    """Per size of map, as they come, the nodes that all there is to the logits passes through, in execution order.

    Of convs, with their own norms, sums and concatenations, and their activations; what one branch of a block computes
    alone is not among them, nor the norm with which a pre-activation block begins.
    """
    flow: dict[fx.Node, int] = {}  # what depends on the pixels; batch sizes do not
    for node in graph.nodes:
        follows = node.op == "placeholder" or not flow.keys().isdisjoint(node.all_input_nodes)
        if follows and not isinstance(node.meta.get("val"), (int, torch.SymInt)):
            flow[node] = len(flow)
    sizes: dict[tuple[int, ...], list[str]] = {}
    ends: set[fx.Node] = set()
    read = 0  # where the last of the values so far is read
    for node, position in flow.items():
        alone = read <= position
        read = max([read, *(flow[user] for user in node.users if user in flow)])
        name, inputs = op_name(node), node.all_input_nodes
        if (
            "conv" in name
            or (name in _NORMS and "conv" in op_name(inputs[0]))
            or (name in _SUMS and not ends.isdisjoint(inputs))
            or (name in _ACTIVATIONS and inputs[0] in ends)
        ):
            ends.add(node)
            output = value(node)
            if alone and output is not None and output.dim() == 4 and output[0, 0].numel() > 1:
                sizes.setdefault(tuple(output.shape[2:]), []).append(node.name)
    return list(sizes.values())


@contextmanager
def outputs(model: nn.Module, places: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the modules at these paths put out in the latest run of `model`."""
    latest: dict[str, Any] = {}
    hooks = [model.get_submodule(place).register_forward_hook(_keep(latest, place)) for place in places]
    try:
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def _keep(latest: dict[str, Any], place: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        latest[place] = output

    return hook


def _module_of(maps: Tensor, found: dict[str, Any]) -> str | None:
    """Path of the module whose output is `maps` up to rounding; of several, the block that ended last.

    By value, since a module that is called twice, an activation mostly, has only its last output here, as in training.
    """
    # The nearest, since a norm as it is before training hardly changes its input.
    distances = {
        path: float((output - maps).abs().max())
        for path, output in reversed(found.items())
        if isinstance(output, Tensor) and output.shape == maps.shape
    }
    nearest = min(distances, key=lambda path: distances[path], default=None)
    return nearest if nearest is not None and distances[nearest] <= 1e-3 * float(maps.abs().max()) else None
