"""The well-known networks for 224x224 images: everything fuses, and masks give the labels that hooks on the modules give."""

import copy
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.evaluator_cases import divergence
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.plan import plan_of
from onp.engine.scoring import Batch
from onp.engine.settings import EvaluatorSettings, Tuning
from onp.engine.steps import ConvStep, OpStep
from onp.model.victim import Victim, victim_from_module

NETWORKS = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "large_networks.py"))
SHARE, CLASSES = 1 / 8, 10
NARROW = Tuning(lane_bytes=16, tap_gemm_products=256)  # at full width these paths are taken without help


def build(name: str) -> nn.Module:
    # Half the layers of DenseNet-121: what differs is only how often the same thing is captured.
    more = {"layers": (3, 6, 12, 8)} if name == "densenet121" else {}
    return NETWORKS[name](SHARE, CLASSES, **more)


def lively(network: nn.Module, images: Tensor) -> nn.Module:
    """Norms that have seen data and a head whose labels differ from image to image."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 1.0
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        network(images)
        logits = network.eval()(images)
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        scale = 2 / logits.std(0).clamp_min(1e-6)
        head.weight *= scale[:, None]
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
    return network


def hooked_logits(victim: Victim, mask: Tensor, images: Tensor) -> Tensor:
    """The network itself, its masks multiplied in by forward hooks."""
    modules, handles = dict(victim.model.named_modules()), []
    for layer in victim.layers:
        gate = mask[layer.offset : layer.offset + layer.units].to(images.dtype)
        gate = gate[:, None, None] if layer.kind == "conv" else gate
        owners = {modules[key.rpartition(".")[0]] for key in layer.norm}
        if layer.node in layer.mask_nodes:
            owners.add(modules[layer.name])
        for owner in owners:
            handles.append(owner.register_forward_hook(lambda module, inputs, output, gate=gate: output * gate))
    try:
        with torch.no_grad():
            return victim.model(images)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0", "vgg16"])
def test_masks_give_the_labels_of_hooks(name):
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    images = torch.randn(3, 3, 224, 224)
    victim = victim_from_module(lively(build(name), images), Normalisation.parse("none"), (3, 224, 224))
    plan = plan_of(victim)
    assert plan.unfused == ()
    convs = [module for module in victim.model.modules() if isinstance(module, nn.Conv2d)]
    assert sum(isinstance(step, ConvStep) for step in plan.steps) == len(convs)
    known = {"cat", "mul", "sigmoid", "flatten"}
    assert all("pool" in step.name or step.name.rsplit("_", 1)[0] in known for step in plan.steps if isinstance(step, OpStep))

    base = torch.ones(victim.units, dtype=torch.bool)
    exact = replace(victim, model=copy.deepcopy(victim.model).double())
    whole, exact_whole = hooked_logits(victim, base, images), hooked_logits(exact, base, images.double())
    labels = whole.argmax(1)
    evaluator = Evaluator(
        victim, Batch(images, labels), [], settings=EvaluatorSettings(precision="float32", chunk=2, tuning=NARROW)
    )
    positions = [0, len(victim.layers) // 3, 2 * len(victim.layers) // 3, len(victim.layers) - 1]
    for layer in [None, *(victim.layers[position] for position in positions)]:
        masks = base.repeat(2, 1)
        if layer is None:
            masks[1] = torch.rand(victim.units) > 0.1
        else:
            units = slice(layer.offset, layer.offset + layer.units)
            masks[:, units] &= torch.rand(2, layer.units) > 0.5
        scores = evaluator.score(masks)
        for row, mask in enumerate(masks):
            logits = hooked_logits(victim, mask, images)
            exact_logits = hooked_logits(exact, mask, images.double())
            rounding = max(float((whole - exact_whole).abs().max()), float((logits - exact_logits).abs().max()))
            hit, top = logits.argmax(1) == labels, logits.topk(2, 1).values
            ties = (top[:, 0] - top[:, 1]) < 1e-4 + 4 * rounding
            sure = int((hit & ~ties).sum())
            assert sure <= scores.acc_count[row] <= sure + int(ties.sum())
            # A log-probability moves by up to twice what the logits do, and ours may be off by twice what plain torch is.
            expected = float(divergence(exact_whole, exact_logits).mean())
            assert scores.divergence[row] == pytest.approx(expected, abs=1e-4 + 4 * rounding)
        if layer is not None:
            base = masks[1]
            evaluator.commit(base)
    assert evaluator.cached_bytes > 0


MEMORY = """
import resource, sys, torch
from torch import nn
from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.settings import EvaluatorSettings
from onp.engine.scoring import Batch
from onp.model.victim import victim_from_module
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10)).eval()
victim = victim_from_module(network, Normalisation.parse("none"), (3, 96, 96))
masks = torch.rand(1, victim.units) > 0.2
peaks = []
for count in (8, 300):
    images, labels = torch.zeros(count, 3, 96, 96), torch.zeros(count, dtype=torch.int64)
    settings = EvaluatorSettings(precision="float32", memory_budget=20 << 20)
    evaluator = Evaluator(victim, Batch(images, labels), [], settings=settings)
    evaluator.score(masks)
    assert evaluator.cached_bytes <= 20 << 20
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[1] - peaks[0], images.nbytes)
"""


def test_memory_stays_bounded_however_many_images_there_are():
    """300 images would fill 350 MB with the first layer's output alone."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    growth, images = (int(number) for number in done.stdout.split())
    assert growth < 3 * images + (120 << 20), f"{growth >> 20} MB more for {images >> 20} MB of images"
