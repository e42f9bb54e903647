"""IMS: a mask and its inverse, so that what is pruned must carry the backdoor (2025, https://arxiv.org/abs/2509.15497).

Per unit a mask a and a selection s, both from 1 within [0, 1]: the gate is S + s (1 - S) with S = sigmoid(20 (a - 0.5)); the
inverse gate has 1 - a in place of a. Three stages of AdamW 0.02: first the inverse is made useless on clean images with few
units selected, then images are disturbed one by one (20 steps) until the inverse takes them where the network goes and that
is away from the clean answer, and the mask must not follow; the third stage adds an L1 term, here on 1 - gate. Each round is
one batch. The published method keeps soft gates; units with a gate of at most t are pruned here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, at_most
from onp.data.images import ImageSet
from onp.model.interpret import gated_forward
from onp.model.tuning.common import Schedule, batches
from onp.model.victim import Victim

SHARPNESS = 20.0
LEARNING_RATE, SELECTION_WEIGHT = 0.02, 10.0
ROUNDS = (100, 200, 200)
INNER_STEPS, INNER_RATE, INNER_BOUND = 20, 1e-3, 1.0
PATIENCE, BETTER = 25, 0.98  # stop when that many rounds brought no loss below 98 % of the best
THRESHOLDS = tuple(t / 20 for t in range(1, 20))


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for t from 0.05 to 0.95."""
    fit, _ = fit_and_held_out(clean, config.seed)
    return at_most(fitted(victim, fit, config), THRESHOLDS)


def agree(p: Tensor, q: Tensor) -> Tensor:
    """Mean -log of the probability that two distributions [N, classes] name the same class."""
    return -(p * q).sum(1).clamp(1e-6, 1).log().mean()


def disagree(p: Tensor, q: Tensor) -> Tensor:
    """Mean -log of the probability that they name different classes."""
    return -(1 - (p * q).sum(1)).clamp(1e-6, 1).log().mean()


def gates(mask: Tensor, select: Tensor) -> Tensor:
    """The soft gates of a mask and a selection, float [U] each."""
    on = torch.sigmoid(SHARPNESS * (mask - 0.5))
    return on + select * (1 - on)


def fitted(victim: Victim, images: ImageSet, config: DefenceConfig) -> Tensor:
    """The gates after three stages, float32 [U]."""
    mask = torch.ones(victim.units, device=victim.device, requires_grad=True)
    select = torch.ones(victim.units, device=victim.device, requires_grad=True)
    whole = torch.ones(victim.units, device=victim.device)

    def probabilities(x: Tensor, gate: Tensor) -> Tensor:
        return gated_forward(victim, x, gate).softmax(1)

    for stage, rounds in enumerate(ROUNDS):
        optimiser = torch.optim.AdamW([mask, select], LEARNING_RATE)
        best, waited = float("inf"), 0
        cost = 2 if stage == 0 else 2 * INNER_STEPS + 5
        schedule = Schedule(f"IMS {stage + 1}/3", steps=rounds, passes=cost, augment=False)
        for _, x, _y in batches(victim, images, config, schedule):
            with torch.no_grad():
                plain = probabilities(x, whole)
            kept, inverse = gates(mask, select), gates(1 - mask, select)
            loss = agree(probabilities(x, kept), plain) + disagree(probabilities(x, inverse), plain)
            if stage == 0:
                loss = loss + SELECTION_WEIGHT * (1 - select).mean()
            else:
                moved = x + disturbance(victim, x, plain, whole, inverse.detach())
                with torch.no_grad():
                    fooled = probabilities(moved, whole)
                wrong = probabilities(moved, inverse)
                loss = loss + agree(probabilities(moved, kept), plain) + agree(wrong, fooled) + disagree(wrong, plain)
            if stage == 2:
                loss = loss + (1 - kept).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
                select.clamp_(0, 1)
            value = loss.item()
            waited = 0 if value < BETTER * best else waited + 1
            best = min(best, value)
            if waited >= PATIENCE:
                break
    return gates(mask, select).detach()


def disturbance(victim: Victim, x: Tensor, plain: Tensor, whole: Tensor, inverse: Tensor) -> Tensor:
    """A change of each image, [N, C, H, W], that the inverse and the network follow away from the clean answer."""
    delta = torch.zeros_like(x, requires_grad=True)
    optimiser = torch.optim.AdamW([delta], INNER_RATE)
    for _ in range(INNER_STEPS):
        full = gated_forward(victim, x + delta, whole).softmax(1)
        loss = agree(gated_forward(victim, x + delta, inverse).softmax(1), full) + disagree(full, plain)
        (delta.grad,) = torch.autograd.grad(loss * len(x), delta)
        optimiser.step()
        with torch.no_grad():
            delta.clamp_(-INNER_BOUND, INNER_BOUND)
    return delta.detach()
