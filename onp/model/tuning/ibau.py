"""I-BAU: unlearn a universal perturbation by implicit hypergradients (Zeng et al. 2022, https://arxiv.org/abs/2110.03735).

Five rounds. Inner: from zero, one pass over the images ascends CE(f(x + d), f's own labels) - 0.001 * ||d||^2 (SGD 10),
clamped to valid pixels and to an L2 ball of 10 as in the original. Outer: per batch, CE where 1 % of the images, at least
one, carry d, with the implicit gradient through the inner step of 0.1 by five fixed-point iterations; Adam (amsgrad) 1e-4 in
evaluation mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data.images import ImageSet
from onp.model.tuning.common import Schedule, batches, trainable, with_weights
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

ROUNDS, FIXED_POINT = 5, 5
ASCENT_RATE, INNER_RATE, NORM_WEIGHT, BALL = 10.0, 0.1, 1e-3, 10.0
LEARNING_RATE, SHARE = 1e-4, 0.01


def tune(victim: Victim, clean: ImageSet, config: TuneConfig) -> Victim:
    """The victim after unlearning."""
    model = trainable(victim, config.pruned).eval()
    parameters = list(model.parameters())
    optimiser = torch.optim.Adam(parameters, LEARNING_RATE, amsgrad=True)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(ROUNDS):
        delta = perturbation(victim, model, clean, config)
        for _, x, y in batches(victim, clean, config, Schedule("I-BAU", epochs=1, passes=2 + 2 * FIXED_POINT)):
            triggered = torch.zeros(len(x), device=x.device)
            triggered[torch.randperm(len(x), generator=generator)[: max(1, int(SHARE * len(x)))]] = 1
            for parameter, gradient in zip(parameters, hypergradient(model, delta, x, y, triggered), strict=True):
                parameter.grad = gradient
            optimiser.step()
    return with_weights(victim, model)


def perturbation(victim: Victim, model: nn.Module, clean: ImageSet, config: TuneConfig) -> Tensor:
    """A universal perturbation of normalised images, [1, C, H, W]."""
    delta = torch.zeros((1, *victim.input_shape), device=victim.device)
    low, high = (victim.normalisation(torch.full_like(delta, bound)) for bound in (0.0, 1.0))
    for _, x, _y in batches(victim, clean, config, Schedule("I-BAU perturbation", epochs=1)):
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(inner_loss(model, delta, x), delta)
        delta = delta.detach() - ASCENT_RATE * gradient
        # Valid for every image only where the images' own pixels allow: the clamp acts on the sum.
        delta = (x + delta).clamp(low, high).sub(x).mean(0, keepdim=True)
        delta = delta * (BALL / delta.norm().clamp_min(1e-12)).clamp_max(1)
    return delta


def inner_loss(model: nn.Module, delta: Tensor, x: Tensor) -> Tensor:
    """What the perturbation descends: minus CE against the network's own labels, plus its weighted norm."""
    with torch.no_grad():
        own = model(x).argmax(1)
    return NORM_WEIGHT * delta.square().sum() - F.cross_entropy(model(x + delta), own)


def hypergradient(model: nn.Module, delta: Tensor, x: Tensor, y: Tensor, triggered: Tensor) -> list[Tensor]:
    """The total gradient of the outer loss by the parameters, the perturbation being a function of them.

    Args:
        model: whose parameters they are.
        delta: the perturbation, `[1, C, H, W]`.
        x: normalised images, `[N, C, H, W]`.
        y: labels, int64 `[N]`.
        triggered: float32 `[N]`, 1 where an image has the perturbation.
    """
    parameters = list(model.parameters())
    delta = delta.detach().requires_grad_(True)
    outer = F.cross_entropy(model(x + triggered.view(-1, 1, 1, 1) * delta), y)
    by_delta, *direct = torch.autograd.grad(outer, [delta, *parameters])
    (slope,) = torch.autograd.grad(inner_loss(model, delta, x), delta, create_graph=True)
    stepped = delta - INNER_RATE * slope
    v = torch.zeros_like(delta)
    for _ in range(FIXED_POINT):
        v = torch.autograd.grad(stepped, delta, v, retain_graph=True)[0] + by_delta
    implicit = torch.autograd.grad(stepped, parameters, v, allow_unused=True)
    return [near if far is None else near + far for near, far in zip(direct, implicit, strict=True)]
