"""TSBD: rank neurons by how much clean unlearning changes them (Lin et al. 2024, https://arxiv.org/abs/2405.20291).

Unlearn clean images (SGD 1e-4) until at most 10 % are right; the change of a neuron is the sum of the changes of its weights.
Pruning alone: the most changed units are pruned. The whole method (`tune`): of those units the 70 % most changed weights are
set to zero, and the network is fine-tuned for 20 epochs with a penalty on the gradient's norm. The share of units is chosen
on held-out clean images, not by the test ASR.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, choose_threshold, first_share
from onp.compare.defences.unlearning import Unlearning, unlearned
from onp.data.images import ImageSet
from onp.model.tuning.common import Schedule, batches, trainable, with_weights
from onp.model.victim import Victim

UNLEARN_RATE, FLOOR, EPOCHS = 1e-4, 0.1, 100
SHARES = (0.0025, 0.005, *(percent / 100 for percent in (*range(1, 10), *range(10, 91, 5))))
ZEROED = 0.7
TUNE_RATE, TUNE_EPOCHS = 0.01, 20
RADIUS, BLEND = 0.05, 0.7  # r and alpha of the gradient-norm penalty


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for 0.25 % to 90 % of all units."""
    fit, _ = fit_and_held_out(clean, config.seed)
    return ranked(victim, changes(victim, fit, config))


def changes(victim: Victim, images: ImageSet, config: DefenceConfig) -> list[Tensor]:
    """Per layer |change| of its weight under unlearning, in the weight's shape, on the CPU."""
    after, before = (
        unlearned(victim, images, config, Unlearning(UNLEARN_RATE, FLOOR, EPOCHS)).state_dict(),
        victim.model.state_dict(),
    )
    return [(after[layer.weight] - before[layer.weight]).abs().cpu() for layer in victim.layers]


def ranked(victim: Victim, moved: list[Tensor]) -> Curve:
    """Masks that prune the units whose weights moved most."""
    order = torch.cat([change.flatten(1).sum(1) for change in moved]).argsort(descending=True)
    return first_share(order, victim.units, SHARES)


def tune(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Victim:
    """The whole method: choose the units, set most of their weights to zero, fine-tune."""
    fit, held_out = fit_and_held_out(clean, config.seed)
    moved = changes(victim, fit, config)
    mask = choose_threshold(victim, held_out, ranked(victim, moved), config.max_acc_drop).mask
    chosen = mask.keep.split([layer.units for layer in victim.layers])
    model = trainable(victim)
    state = model.state_dict()
    for layer, change, keep in zip(victim.layers, moved, chosen, strict=True):
        rows = change[~keep].flatten(1)
        if len(rows):
            zeroed = torch.zeros_like(rows, dtype=torch.bool)
            zeroed.scatter_(1, rows.topk(max(1, round(ZEROED * rows.shape[1])), 1).indices, True)
            whole = torch.zeros_like(change, dtype=torch.bool)
            whole[~keep] = zeroed.view(-1, *change.shape[1:])
            state[layer.weight][whole.to(victim.device)] = 0
    parameters = list(model.parameters())
    optimiser = torch.optim.SGD(parameters, TUNE_RATE, momentum=0.9, weight_decay=5e-4)
    for _, x, y in batches(victim, clean, config, Schedule("TSBD", epochs=TUNE_EPOCHS, passes=2)):
        here = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        length = torch.stack([gradient.norm() for gradient in here]).norm().clamp_min(1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, here, strict=True):
                parameter.add_(RADIUS * gradient / length)
        there = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        with torch.no_grad():
            for parameter, near, far in zip(parameters, here, there, strict=True):
                parameter.sub_(RADIUS * near / length)
                parameter.grad = (1 - BLEND) * near + BLEND * far
        optimiser.step()
    return with_weights(victim, model)
