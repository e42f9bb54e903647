"""What the evaluator is measured on: networks with their images, the masks of the workloads, and the least work they need."""

import math
import platform
import runpy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onp.attack.triggers import load_trigger
from onp.data.images import load_images
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, NORM, demo
from onp.engine.incremental import changed_steps
from onp.engine.plan import Plan
from onp.engine.scoring import Batch, TriggeredBatch
from onp.engine.steps import ConvStep, LinearStep
from onp.model.archs import build_network
from onp.model.layers import Layer
from onp.model.victim import Victim, load_victim, victim_from_module

TESTS = Path(__file__).parent.parent / "tests"
PRUNED = 0.05


@dataclass(frozen=True, eq=False)
class Case:
    """A victim, its clean batch and one triggered batch; `trained`: its labels mean something."""

    name: str
    victim: Victim
    clean: Batch
    triggered: TriggeredBatch
    trained: bool

    @property
    def images(self) -> int:
        return len(self.clean.labels) + len(self.triggered.labels)


def case(name: str, device: str, images: int | None = None) -> Case:
    """ "preact_resnet18" (width 64, 32x32, 500 + 500 images), "resnet50" (224x224, 64 + 64), "embedded" (the embedded BadNets
    victim, its 500 clean images and as many triggered ones), "small" (preact_resnet18 of width 16)."""
    torch.manual_seed(0)
    if name == "embedded":
        return _embedded(device, images or 500)
    if name == "resnet50":
        network, size, count = runpy.run_path(str(TESTS / "large_networks.py"))["resnet50"](), 224, images or 64
    else:
        width = 16 if name == "small" else 64
        network, size, count = build_network(f"preact_resnet18:width={width}"), 32, images or (32 if name == "small" else 500)
    network = _lively(network.to(device), torch.randn(16, 3, size, size, device=device))
    victim = victim_from_module(network, Normalisation.parse("none"), (3, size, size), device=device)
    labels = torch.randint(0, victim.classes, (2, count))
    triggered = TriggeredBatch("patch", torch.randn(count, 3, size, size), labels[1], torch.zeros_like(labels[1]))
    return Case(name, victim, Batch(torch.randn(count, 3, size, size), labels[0]), triggered, False)


def _embedded(device: str, count: int) -> Case:
    files = demo("badnets")
    victim = load_victim(files.model, ARCH, Normalisation.parse(NORM), (1, 28, 28), device)
    clean, others = load_images(files.clean), load_images(files.evaluation)
    assert files.trigger is not None
    pixels, labels = load_trigger(files.trigger)(others.pixels()[:count]), others.labels[:count]
    norm = Normalisation.parse(NORM)
    triggered = TriggeredBatch("badnets", norm(pixels), labels, torch.zeros_like(labels))
    return Case("embedded", victim, Batch(norm(clean.pixels()[:count]), clean.labels[:count]), triggered, True)


@torch.no_grad()
def _lively(network: nn.Module, images: Tensor) -> nn.Module:
    """Random weights, norms that have seen data, and a head whose labels differ from image to image."""
    network.train()
    for _ in range(3):
        network(images)
    logits = network.eval()(images)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    scale = 2 / logits.std(0).clamp_min(1e-6)
    head.weight.mul_(scale[:, None])
    head.bias.copy_((head.bias - logits.mean(0)) * scale)
    return network


def full_masks(victim: Victim, count: int, pruned: float = PRUNED) -> Tensor:
    """Masks over all units."""
    return torch.rand(count, victim.units) > pruned


def late_masks(victim: Victim, count: int, pruned: float = PRUNED) -> Tensor:
    """Masks over the last stage: the layers behind the last down-sampling."""
    return masks_from(victim, last_stage(victim), count, pruned)


def last_stage(victim: Victim) -> Layer:
    """Its first layer."""
    last = max(layer.stage for layer in victim.layers)
    return next(layer for layer in victim.layers if layer.stage == last)


def masks_from(victim: Victim, layer: Layer, count: int, pruned: float = PRUNED) -> Tensor:
    """Masks over `layer` and all after it."""
    masks = full_masks(victim, count, pruned)
    masks[:, : layer.offset] = True
    return masks


def groups(victim: Victim) -> list[list[Layer]]:
    """Layers whose filters are tied by sums, so that they are pruned together; first to last."""
    numbers = dict.fromkeys(layer.group for layer in victim.layers)
    return [[layer for layer in victim.layers if layer.group == number] for number in numbers]


def group_masks(members: list[Layer], base: Tensor, keep: Tensor) -> Tensor:
    """Masks that prune filters of a group from a base: of all its layers those that `keep`, bool [B, filters], leaves out."""
    masks = base.repeat(len(keep), 1)
    for layer in members:
        masks[:, layer.offset : layer.offset + layer.units] &= keep[:, : layer.units]
    return masks


def least_work(plan: Plan, first: int, value_bytes: int) -> tuple[float, float]:
    """What masks over every layer from step `first` on need, an image, all channels kept: FLOPs of the conv and linear layers
    with changed inputs, filter taps over padding left out, and bytes of the values to read and write."""
    changed = {index: True for index, step in enumerate(plan.steps) if index >= first and step.mask_slice is not None}
    steps = plan.steps[changed_steps(plan, changed, first).start :]
    shapes = [math.prod(plan.shapes[name] or ()) for step in steps for name in (*step.inputs, step.name)]
    flops = 0.0
    for step in steps:
        if isinstance(step, ConvStep | LinearStep):
            products = 2.0 * math.prod(plan.shapes[step.name] or ()) * step.weight[0].numel()
            flops += products * (_inside(step, plan) if isinstance(step, ConvStep) else 1)
    return flops, float(sum(shapes)) * value_bytes


def _inside(step: ConvStep, plan: Plan) -> float:
    """Share of a conv's filter taps that lie inside the image."""
    sizes, outputs = (plan.shapes[name] or () for name in (step.inputs[0], step.name))
    share = 1.0
    for axis in (0, 1):
        taps = [
            0 <= position * step.stride[axis] + tap * step.dilation[axis] - step.padding[axis] < sizes[1 + axis]
            for position in range(outputs[1 + axis])
            for tap in range(step.weight.shape[2 + axis])
        ]
        share *= sum(taps) / len(taps)
    return share


@dataclass(frozen=True)
class Rates:
    flops: float  #: multiplications and additions a second of a large matrix product
    bytes: float  #: read and written a second by a copy

    def floor(self, plan: Plan, images: int, layer: Layer, value_bytes: int) -> float:
        """Seconds that a mask over `layer` and all after it takes at these rates, no channel left out."""
        slices = [(i, step.mask_slice) for i, step in enumerate(plan.steps)]
        first = min(i for i, units in slices if units is not None and units.offset == layer.offset)
        flops, moved = least_work(plan, first, value_bytes)
        return max(flops * images / self.flops, moved * images / self.bytes)


def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """A square product of 8192 (2048 on a CPU) and a copy of 256 MB; the best of several, as a floor asks for."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(1 << 26, device=device)
    target = torch.empty_like(source).copy_(source)
    product = min(seconds(lambda: a @ b, 7, device))
    copy = min(seconds(lambda: target.copy_(source), 7, device))
    return Rates(2 * size**3 / product, 2 * source.nbytes / copy)


clock = time.perf_counter  # or time.process_time: --cpu-time


def seconds(call: Callable[..., object], rounds: int, device: str, draw: Callable[[], object] | None = None) -> list[float]:
    """Seconds of each round; what has to warm up has done so when its answers were checked.

    What `draw` gives is the argument of `call`, and the time it takes does not count.
    """
    found = []
    for _ in range(rounds):
        drawn = () if draw is None else (draw(),)
        start = clock()
        call(*drawn)
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - start)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
