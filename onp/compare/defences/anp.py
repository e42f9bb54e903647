"""ANP: prune the units that a network depends on when its neurons are disturbed (Wu and Wang 2021,
https://arxiv.org/abs/2110.14430).

A mask m in [0, 1] and adversarial noise on every unit's scale and shift: y = (m + d) * scale * x^ + (m + e) * shift, d and e
within 0.4, one step of sign ascent; m descends 0.2 * CE without noise + 0.8 * CE with it. Units with m at most t are pruned.
Batch statistics while fitting, learning rate 0.2, 2,000 batches of 128, as published. Here m multiplies the shift too, because
that is what pruning a unit does. Layers without a norm have the mask and the noise on their weight and bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, at_most
from onp.data.images import ImageSet
from onp.model.interpret import expand_units
from onp.model.tuning.common import Schedule, batches, trainable
from onp.model.victim import Victim

NOISE = 0.4
CLEAN_SHARE = 0.2
LEARNING_RATE = 0.2
STEPS = 2000
THRESHOLDS = tuple(t / 20 for t in range(20))


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for t from 0 to 0.95."""
    fit, _ = fit_and_held_out(clean, config.seed)
    return at_most(fitted(victim, fit, config), THRESHOLDS)


def fitted(victim: Victim, images: ImageSet, config: DefenceConfig) -> Tensor:
    """The mask after the min-max optimisation, float32 [U]."""
    model = trainable(victim).requires_grad_(False)
    generator = torch.Generator().manual_seed(config.seed)
    mask = torch.ones(victim.units, device=victim.device, requires_grad=True)
    optimiser = torch.optim.SGD([mask], LEARNING_RATE, momentum=0.9)
    for _, x, y in batches(victim, images, config, Schedule("ANP", steps=STEPS, passes=3)):
        noise = NOISE * (2 * torch.rand((2, victim.units), generator=generator) - 1).to(victim.device)
        noise.requires_grad_(True)
        held = mask.detach()
        worst = F.cross_entropy(functional_call(model, scaled(victim, model, held + noise[0], held + noise[1]), (x,)), y)
        (gradient,) = torch.autograd.grad(worst, noise)
        noise = (noise.detach() + NOISE * gradient.sign()).clamp(-NOISE, NOISE)
        clean = F.cross_entropy(functional_call(model, scaled(victim, model, mask, mask), (x,)), y)
        worst = F.cross_entropy(functional_call(model, scaled(victim, model, mask + noise[0], mask + noise[1]), (x,)), y)
        optimiser.zero_grad()
        (CLEAN_SHARE * clean + (1 - CLEAN_SHARE) * worst).backward()
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return mask.detach()


def scaled(victim: Victim, model: nn.Module, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """The parameters of `model` that pruning would edit, every unit's multiplied by its scale and shift, float [U] each."""
    state = model.state_dict(keep_vars=True)
    changed: dict[str, Tensor] = {}
    for layer in victim.layers:
        part = slice(layer.offset, layer.offset + layer.units)
        for key in layer.norm[::2]:
            changed[key] = state[key] * scale[part]
        for key in layer.norm[1::2]:
            changed[key] = state[key] * shift[part]
        if layer.node in layer.mask_nodes:
            changed[layer.weight] = state[layer.weight] * expand_units(scale[part], state[layer.weight].dim(), 0)
            if layer.bias is not None:
                changed[layer.bias] = state[layer.bias] * shift[part]
    return changed
