"""Fit a family's triggers to minimal cost at high success, for several candidate classes at once, on clean images only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.state import recalled
from onp.surrogates import Family

Logits = Callable[[Tensor], Tensor]  # float32 images [N, C, H, W] in [0, 1] -> [N, classes]


@dataclass(frozen=True)
class FitConfig:
    """How a family is fitted."""

    steps: int = 60  #: Adam steps
    images: int = 16  #: images a class and step
    keep: float = 0.9  #: running mean probability of the target at which a trigger counts as working


@dataclass(frozen=True)
class Fit:
    """Fitted triggers of one family, one per class in `targets`."""

    family: Family
    targets: tuple[int, ...]
    parameters: tuple[Tensor, ...]  #: of the cheapest trigger that worked, first dimension as `targets`
    cost: Tensor  #: float32 [G], in the family's unit
    worked: Tensor  #: bool [G]; False where no trigger reached `FitConfig.keep`

    def apply(self, images: Tensor, row: int) -> Tensor:
        """Put the trigger of `targets[row]` on images float32 `[N, C, H, W]` in [0, 1]."""
        return self.family.apply(tuple(value[row : row + 1] for value in self.parameters), images[None])[0]


def fit(
    models: Sequence[Logits],
    family: Family,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    seed: int,
    config: FitConfig,
    tick: Callable[[], None] = lambda: None,
) -> Fit:
    """Fit one trigger per class in `targets` that works on every model in `models` at once.

    The weight of the cost adapts to the target's mean probability p (x1.5 once p is half way from `keep` to 1, /1.5 well below
    `keep`), so triggers shrink until they barely work. Probability and not the argmax counts: a trigger that just flips images
    is weaker than the attacker's, and a mask that stops it would not stop the real one.

    Args:
        models: the victim alone, or the victim and a repaired model for triggers that survive the repair
            (shared adversarial examples, SAU, https://arxiv.org/abs/2307.10562).
        images: float32 `[N, C, H, W]` in [0, 1]; those of the target class itself are left out.
        labels: int64 `[N]`.
    """
    name = f"fit-{family.name}-{seed}-{len(models)}-{len(targets)}-{targets[0]}"
    found = recalled(name, lambda: _fit(models, family, images, labels, targets, seed, config, tick))
    found = {key: value.to(images.device) for key, value in found.items()}
    parameters = tuple(found[f"parameter.{index}"] for index in range(len(found) - 2))
    return Fit(family, tuple(targets), parameters, found["cost"], found["worked"])


def _fit(
    models: Sequence[Logits],
    family: Family,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    seed: int,
    config: FitConfig,
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count, goal = len(targets), torch.tensor(list(targets), device=images.device)
    parameters = tuple(
        value.to(images.device).requires_grad_()
        for value in family.start(count, (images.shape[1], images.shape[2], images.shape[3]), generator)
    )
    optimiser = torch.optim.Adam(parameters, family.lr, betas=(0.5, 0.9))
    pools = [(labels != target).nonzero()[:, 0].cpu() for target in targets]
    weight = torch.full((count,), family.weight, device=images.device)
    running = torch.zeros(count, device=images.device)
    cheapest = torch.full((count,), torch.inf, device=images.device)
    kept = [value.detach().clone() for value in parameters]
    for step in range(config.steps):
        picks = torch.stack([pool[torch.randint(len(pool), (config.images,), generator=generator)] for pool in pools])
        triggered = family.apply(parameters, images[picks.to(images.device)]).flatten(0, 1)
        wanted = goal.repeat_interleave(config.images)
        loss, sure = torch.zeros(count, device=images.device), torch.ones(count, device=images.device)
        for model in models:
            each = F.cross_entropy(model(triggered), wanted, reduction="none").view(count, -1)
            loss = loss + each.mean(1)
            sure = torch.minimum(sure, torch.exp(-each.detach()).mean(1))
        cost = family.cost(parameters)
        gradients = torch.autograd.grad((loss + weight * cost).sum(), parameters)
        running = sure if step == 0 else 0.7 * running + 0.3 * sure
        better = (running >= config.keep) & (cost.detach() < cheapest)
        cheapest = torch.where(better, cost.detach(), cheapest)
        for best, value, gradient in zip(kept, parameters, gradients, strict=True):
            best[better] = value.detach()[better]
            value.grad = gradient
        optimiser.step()
        if step % 3 == 2:
            low, high = config.keep - 0.1, (1 + config.keep) / 2
            weight = torch.where(running > high, weight * 1.5, torch.where(running < low, weight / 1.5, weight))
        tick()
    worked = cheapest.isfinite()
    for best, value in zip(kept, parameters, strict=True):
        best[~worked] = value.detach()[~worked]
    with torch.no_grad():
        final = family.cost(tuple(kept))
    return {"cost": final, "worked": worked, **{f"parameter.{index}": value for index, value in enumerate(kept)}}


@torch.no_grad()
def success_rate(model: Logits, trigger: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, target: int) -> float:
    """Share of the images of other classes that the trigger leads to `target`; 0 where there are none."""
    others = images[labels != target]
    if len(others) == 0:
        return 0.0
    return float((model(trigger(others)).argmax(1) == target).float().mean())
