"""Fit a family's triggers to minimal cost at high success, for several candidate classes at once, on clean images only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.bn_match import Recall
from onp.detect.trigger_families import Family
from onp.engine.differentiable import Logits
from onp.engine.metrics import at_once
from onp.resume import recalled


@dataclass(frozen=True)
class FitConfig:
    """How a family is fitted."""

    steps: int = 60  #: Adam steps
    images: int = 16  #: images a class and step
    keep: float = 0.9  #: running mean probability of the target at which a trigger counts as working
    recall: float = 2.0  #: worth of matching what the norms remember, times how far that may be believed, in nats


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
    tick: Callable[..., None] = lambda *_, **__: None,
    recall: Recall | None = None,
) -> Fit:
    """Fit one trigger per class in `targets` that works on every model in `models` at once.

    The weight of the cost adapts to the target's mean probability p (x1.5 once p is half way from `keep` to 1, /1.5 well below
    `keep`), so triggers shrink until they barely work. Probability and not the argmax counts: a trigger that just flips images
    is weaker than the attacker's, and a mask that stops it would not stop the real one.

    With `recall`, of the first model, triggers are also to change the features as the one in the training images did: then the
    best match among those that work well enough is kept, not the cheapest.

    Args:
        models: the victim alone, or the victim and a repaired model for triggers that survive the repair
            (shared adversarial examples, SAU, https://arxiv.org/abs/2307.10562).
        images: float32 `[N, C, H, W]` in [0, 1]; those of the target class itself are left out.
        labels: int64 `[N]`.
    """
    name = f"fit-{family.name}-{seed}-{len(models)}-{len(targets)}-{targets[0]}-{targets[-1]}"
    steps = 0

    def counted() -> None:
        nonlocal steps
        steps += 1
        tick()

    found = recalled(name, lambda: _fit(models, family, images, labels, targets, seed, config, counted, recall))
    if not steps:
        tick(config.steps, known=True)
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
    recall: Recall | None,
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
    running, mean_ill = torch.zeros(count, device=images.device), torch.zeros(count, device=images.device)
    low, high = config.keep - 0.1, (1 + config.keep) / 2
    enough = config.keep if recall is None else low
    least = torch.full((count,), torch.inf, device=images.device)
    read = None if recall is None else recall.read(images)
    kept = [value.detach().clone() for value in parameters]
    # As many triggers at once as memory bears; they do not depend on each other.
    at_a_time = max(1, at_once(images, count * config.images) // config.images)
    groups = [slice(row, row + at_a_time) for row in range(0, count, at_a_time)]
    for step in range(config.steps):
        picks = torch.stack([pool[torch.randint(len(pool), (config.images,), generator=generator)] for pool in pools])
        done = []
        for rows in groups:
            picked = picks[rows].to(images.device)
            clean = None if read is None else [each[picked].mean(1) for each in read]
            some = tuple(value[rows] for value in parameters)
            done.append(
                _differentiate(models, family, some, images[picked], goal[rows], weight[rows], config.recall, recall, clean)
            )
        sure, ill = (torch.cat(parts) for parts in list(zip(*done, strict=True))[:2])
        gradients = [torch.cat(parts) for parts in zip(*(gradient for _, _, gradient in done), strict=True)]
        running = sure if step == 0 else 0.7 * running + 0.3 * sure
        # The cost is exact; a match is of a few images.
        mean_ill = ill if step == 0 or recall is None else 0.7 * mean_ill + 0.3 * ill
        better = (running >= enough) & (mean_ill < least)
        least = torch.where(better, mean_ill, least)
        for best, value, gradient in zip(kept, parameters, gradients, strict=True):
            best[better] = value.detach()[better]
            value.grad = gradient
        optimiser.step()
        if step % 3 == 2:
            weight = torch.where(running > high, weight * 1.5, torch.where(running < low, weight / 1.5, weight))
        tick()
    worked = least.isfinite()
    for best, value in zip(kept, parameters, strict=True):
        best[~worked] = value.detach()[~worked]
    with torch.no_grad():
        final = family.cost(tuple(kept))
    return {"cost": final, "worked": worked, **{f"parameter.{index}": value for index, value in enumerate(kept)}}


def _differentiate(
    models: Sequence[Logits],
    family: Family,
    parameters: tuple[Tensor, ...],
    images: Tensor,
    goal: Tensor,
    weight: Tensor,
    worth: float,
    recall: Recall | None,
    clean: list[Tensor] | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Of G triggers on images `[G, N, C, H, W]`: the least mean probability of their goals over the models and what is to be
    small, the cost or minus the match with `recall`, both float32 `[G]`, and the gradients of cross-entropy plus weighted cost
    less the match. `clean`: mean of what the norms read of the images, `[G, channels]` each.
    """
    triggered, wanted = family.apply(parameters, images).flatten(0, 1), goal.repeat_interleave(images.shape[1])
    loss, sure = torch.zeros(len(goal), device=images.device), torch.ones(len(goal), device=images.device)
    read: list[Tensor] = []
    for index, model in enumerate(models):
        if index == 0 and recall is not None:
            logits, read = recall.run(triggered)
        else:
            logits = model(triggered)
        each = F.cross_entropy(logits, wanted, reduction="none").view(len(goal), -1)
        loss = loss + each.mean(1)
        sure = torch.minimum(sure, torch.exp(-each.detach()).mean(1))
    cost = family.cost(parameters)
    total, ill = loss + weight * cost, cost
    if recall is not None and clean is not None:
        changes = [each.view(len(goal), -1, each.shape[1]).mean(1) - plain for each, plain in zip(read, clean, strict=True)]
        ill = -recall.match(changes)
        total = total + worth * recall.reliability * ill
    return sure, ill.detach(), torch.autograd.grad(total.sum(), parameters)


@torch.no_grad()
def success_rate(model: Logits, trigger: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, target: int) -> float:
    """Share of the images of other classes that the trigger leads to `target`; 0 where there are none."""
    others = images[labels != target]
    if len(others) == 0:
        return 0.0
    triggered = trigger(others).split(at_once(others, len(others)))
    return float((torch.cat([model(part).argmax(1) for part in triggered]) == target).float().mean())
