"""NPD: a linear layer in the frozen network filters the backdoor out (Zhu et al. 2023, https://arxiv.org/abs/2306.16697).

A 1x1 conv, at first the identity, and a batch norm in front of the second-to-last conv; only they are trained. Five epochs of
CE with SGD 1e-4, then 50 with SGD 0.01: images are disturbed (L2 3, two steps of 0.1 from a random start) towards their
second most likely class, and the loss is CE on clean images + 0.4 * (CE on disturbed ones - log(1 - p) of the class aimed at
- log(1 - p) of the strongest wrong class). The result is another network: it cannot be stored in the victim's checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.compare.defences.config import DefenceConfig
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.tuning.common import Schedule, away_from, batches, descend, trainable
from onp.model.victim import Victim, victim_from_module

WARM_EPOCHS, EPOCHS = 5, 50
WARM_RATE, LEARNING_RATE = 1e-4, 0.01
BOUND, STEP, STEPS = 3.0, 0.1, 2
WEIGHT = 0.4


def tune(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Victim:
    """A new victim with the filter in it; it has no checkpoint.

    Raises InputError where the network has fewer than two convs that are modules of their own.
    """
    model = trainable(victim).eval().requires_grad_(False)
    polariser = insert(victim, model)
    optimiser = torch.optim.SGD(polariser.parameters(), WARM_RATE, momentum=0.9, weight_decay=5e-4)
    polariser.train()
    for _, x, y in batches(victim, clean, config, Schedule("NPD warm-up", epochs=WARM_EPOCHS)):
        descend(optimiser, F.cross_entropy(model(x), y))
    for group in optimiser.param_groups:
        group["lr"] = LEARNING_RATE
    generator = torch.Generator().manual_seed(config.seed)
    for _, x, y in batches(victim, clean, config, Schedule("NPD", epochs=EPOCHS, passes=STEPS + 2)):
        polariser.eval()
        with torch.no_grad():
            aim = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        moved = disturbed(model, x, aim, generator)
        polariser.train()
        logits, answers = model(x), model(moved)
        strongest = answers.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        chances = answers.softmax(1)
        push = away_from(chances, aim).mean() + away_from(chances, strongest).mean()
        descend(optimiser, F.cross_entropy(logits, y) + WEIGHT * (F.cross_entropy(answers, y) + push))
    filtered = victim_from_module(model.eval(), victim.normalisation, victim.input_shape, victim.classes, device=victim.device)
    return replace(filtered, arch=f"{victim.arch} + NPD")


def insert(victim: Victim, model: nn.Module) -> nn.Module:
    """Put the filter in front of the second-to-last conv of `model`; returns it, in evaluation mode."""
    convs = [layer.weight.rpartition(".")[0] for layer in victim.layers if layer.kind == "conv"]
    place = convs[-2] if len(convs) > 1 else ""
    conv = model.get_submodule(place) if place else None
    if not isinstance(conv, nn.Conv2d):
        raise InputError("NPD needs a network with at least two convs, each a module of its own.")
    mixing = nn.Conv2d(conv.in_channels, conv.in_channels, 1, bias=False)
    with torch.no_grad():
        mixing.weight.copy_(torch.eye(conv.in_channels)[:, :, None, None])
    polariser = nn.Sequential(mixing, nn.BatchNorm2d(conv.in_channels)).to(victim.device)
    model.set_submodule(place, nn.Sequential(polariser, conv))
    return polariser.eval()


def disturbed(model: nn.Module, x: Tensor, aim: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, C, H, W], normalised, moved towards the class `aim`, int64 [N]."""
    delta = _unit(torch.randn(x.shape, generator=generator).to(x.device))
    delta = delta * BOUND * torch.rand((len(x), 1, 1, 1), generator=generator).to(x.device)
    for _ in range(STEPS):
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x + delta), aim, reduction="sum"), delta)
        delta = delta.detach() - STEP * _unit(gradient)
        delta = delta * (BOUND / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
    return x + delta


def _unit(x: Tensor) -> Tensor:
    return x / x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
