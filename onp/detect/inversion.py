"""Trigger inversion: a family's triggers of minimal cost at high success, for several target classes at once.

Only clean images are used (Neural Cleanse, Wang et al. 2019, https://doi.org/10.1109/SP.2019.00031).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.bn_match import BnMatch
from onp.detect.config import DetectRun, InversionConfig
from onp.detect.trigger_families import Family
from onp.engine.differentiable import Logits
from onp.engine.metrics import at_once


@dataclass(frozen=True, eq=False)
class InversionTask:
    """What triggers are inverted for."""

    models: Sequence[Logits]
    """The victim alone, or the victim and a repaired network for triggers that survive the repair (shared adversarial examples,
    SAU, https://arxiv.org/abs/2307.10562): a trigger must work on all of them."""
    images: Tensor  #: float32 `[N, C, H, W]` in [0, 1]; those of a target class are left out for that class
    labels: Tensor  #: int64 `[N]`
    targets: tuple[int, ...]  #: one trigger for each; a class may stand here several times
    match: BnMatch | None = None  #: of the first model; triggers are then to match its BN-statistics residual too


@dataclass(frozen=True, eq=False)
class InvertedTriggers:
    """Triggers of one family, one per class in `targets`."""

    family: Family
    targets: tuple[int, ...]
    parameters: tuple[Tensor, ...]  #: of the best trigger that worked, first dimension as `targets`
    cost: Tensor  #: float32 `[G]`, in the family's unit
    worked: Tensor  #: bool `[G]`; False where no trigger reached `InversionConfig.min_confidence`

    def apply(self, images: Tensor, row: int) -> Tensor:
        """Put the trigger of `targets[row]` on images float32 `[N, C, H, W]` in [0, 1]."""
        return self.family.apply(tuple(value[row : row + 1] for value in self.parameters), images[None])[0]


def invert(family: Family, task: InversionTask, config: InversionConfig, run: DetectRun) -> InvertedTriggers:
    """Invert one trigger per class in `task.targets` that works on every model at once.

    The weight of the cost adapts to the target's mean probability p (x1.5 once p is half way from `min_confidence` to 1, /1.5
    well below `min_confidence`), so triggers shrink until they barely work. Probability and not the argmax counts: a trigger
    that just flips images is weaker than the attacker's, and a mask that stops it would not stop the real one.

    With `task.match` the trigger of the best match among those that work is kept, not the cheapest.

    Args:
        family: the kind of trigger.
        task: models, clean images and target classes.
        config: how long and how hard to try.
        run: seed, progress (`config.steps` steps) and resume store.
    """
    steps = 0

    def step_done() -> None:
        nonlocal steps
        steps += 1
        run.progress()

    def compute() -> dict[str, Tensor]:
        best, worked = _optimised(family, task, config, run, step_done)
        with torch.no_grad():
            cost = family.cost(best)
        return dict(zip(family.parameter_names, best, strict=True)) | {"cost": cost, "worked": worked}

    values = compute() if run.store is None else run.store.tensors(_key(family, task, config, run), compute)
    if not steps:
        run.progress(config.steps, known=True)
    values = {name: value.to(task.images.device) for name, value in values.items()}
    parameters = tuple(values[name] for name in family.parameter_names)
    return InvertedTriggers(family, task.targets, parameters, values["cost"], values["worked"])


@torch.no_grad()
def success_rate(model: Logits, trigger: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, target: int) -> float:
    """Share of the images of other classes that the trigger leads to `target`; 0 where there are none.

    Args:
        model: images to logits.
        trigger: images to triggered images, both float32 `[N, C, H, W]` in [0, 1].
        images: float32 `[N, C, H, W]` in [0, 1].
        labels: int64 `[N]`.
        target: the class.
    """
    others = images[labels != target]
    if len(others) == 0:
        return 0.0
    triggered = trigger(others).split(at_once(others, len(others)))
    return float((torch.cat([model(part).argmax(1) for part in triggered]) == target).float().mean())


def _key(family: Family, task: InversionTask, config: InversionConfig, run: DetectRun) -> str:
    """A name for the result, of all that differs between the inversions of a run; its network and images are the same."""
    facts = {"config": dataclasses.asdict(config), "seed": run.seed, "targets": task.targets}
    facts |= {"models": len(task.models), "matched": task.match is not None}
    text = json.dumps(facts, sort_keys=True)
    return f"triggers-{family.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _optimised(
    family: Family, task: InversionTask, config: InversionConfig, run: DetectRun, step_done: Callable[[], None]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Parameters of the best trigger per target, and whether it worked, bool `[G]`."""
    images, targets, match = task.images, task.targets, task.match
    generator = torch.Generator().manual_seed(run.seed)
    count, goals = len(targets), torch.tensor(targets, device=images.device)
    parameters = tuple(
        value.to(images.device).requires_grad_()
        for value in family.start(count, (images.shape[1], images.shape[2], images.shape[3]), generator)
    )
    optimiser = torch.optim.Adam(parameters, family.lr, betas=(0.5, 0.9))
    pools = [(task.labels != target).nonzero()[:, 0].cpu() for target in targets]
    weight = torch.full((count,), family.weight, device=images.device)
    running, mean_loss = torch.zeros(count, device=images.device), torch.zeros(count, device=images.device)
    low, high = config.min_confidence - 0.1, (1 + config.min_confidence) / 2
    enough = config.min_confidence if match is None else low
    least = torch.full((count,), torch.inf, device=images.device)
    clean = None if match is None else match.read(images)
    best = [value.detach().clone() for value in parameters]
    # As many triggers at once as memory bears; they do not depend on each other.
    at_a_time = max(1, at_once(images, count * config.images, run.values_at_once) // config.images)
    groups = [slice(row, row + at_a_time) for row in range(0, count, at_a_time)]
    for step in range(config.steps):
        picks = torch.stack([pool[torch.randint(len(pool), (config.images,), generator=generator)] for pool in pools])
        parts = []
        for rows in groups:
            picked = picks[rows].to(images.device)
            batch = _Batch(
                images=images[picked],
                goals=goals[rows],
                weight=weight[rows],
                clean=None if clean is None else [values[picked].mean(1) for values in clean],
            )
            parts.append(_differentiated(family, tuple(value[rows] for value in parameters), batch, task, config))
        confidence, loss = (torch.cat(same) for same in list(zip(*parts, strict=True))[:2])
        gradients = [torch.cat(same) for same in zip(*(gradient for _, _, gradient in parts), strict=True)]
        running = confidence if step == 0 else 0.7 * running + 0.3 * confidence
        # A cost is exact; a match is measured on a few images.
        mean_loss = loss if step == 0 or match is None else 0.7 * mean_loss + 0.3 * loss
        better = (running >= enough) & (mean_loss < least)
        least = torch.where(better, mean_loss, least)
        for kept, value, gradient in zip(best, parameters, gradients, strict=True):
            kept[better] = value.detach()[better]
            value.grad = gradient
        optimiser.step()
        if step % 3 == 2:
            weight = torch.where(running > high, weight * 1.5, torch.where(running < low, weight / 1.5, weight))
        step_done()
    worked = least.isfinite()
    for kept, value in zip(best, parameters, strict=True):
        kept[~worked] = value.detach()[~worked]
    return tuple(best), worked


@dataclass(frozen=True, eq=False)
class _Batch:
    """One step of G triggers."""

    images: Tensor  #: `[G, N, C, H, W]`
    goals: Tensor  #: int64 `[G]`
    weight: Tensor  #: float32 `[G]`, of the cost
    clean: list[Tensor] | None  #: per norm of the match, mean features of the images, `[G, channels]`


def _differentiated(
    family: Family, parameters: tuple[Tensor, ...], batch: _Batch, task: InversionTask, config: InversionConfig
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Confidence, loss and gradients of G triggers.

    Returns:
        float32 `[G]`: the least mean probability of the goal over the models.
        float32 `[G]`: what is minimised among triggers that work: the cost, or minus the BN-shift match.
        The gradients of cross-entropy plus weighted cost, less the weighted match.
    """
    match, goals = task.match, batch.goals
    triggered, wanted = family.apply(parameters, batch.images).flatten(0, 1), goals.repeat_interleave(batch.images.shape[1])
    total, confidence = torch.zeros(len(goals), device=triggered.device), torch.ones(len(goals), device=triggered.device)
    features: list[Tensor] = []
    for index, model in enumerate(task.models):
        if index == 0 and match is not None:
            logits, features = match.features(triggered)
        else:
            logits = model(triggered)
        entropy = F.cross_entropy(logits, wanted, reduction="none").view(len(goals), -1)
        total = total + entropy.mean(1)
        confidence = torch.minimum(confidence, torch.exp(-entropy.detach()).mean(1))
    cost = family.cost(parameters)
    total, loss = total + batch.weight * cost, cost
    if match is not None and batch.clean is not None:
        pairs = zip(features, batch.clean, strict=True)
        loss = -match.match([values.view(len(goals), -1, values.shape[1]).mean(1) - clean for values, clean in pairs])
        total = total + config.bn_match_weight * match.reliability * loss
    return confidence, loss.detach(), torch.autograd.grad(total.sum(), parameters)
