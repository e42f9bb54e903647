"""Heal a pruned network: give images with a trigger their own label back.

Pruning takes the backdoor's units out, but what is left has never seen such images, and gives many of them a wrong label. Here
the network learns from pairs of a clean image and a copy with an inverted trigger to answer both as its teacher answers the
clean one (distillation, Hinton et al. 2015, https://arxiv.org/abs/1503.02531). The teacher, the pruned network or one that is
more accurate, never sees a trigger. Pruned units stay at zero. Only the later half of the network learns: what a trigger
changes early in a network cannot be undone there, and a few hundred images are few for all weights (docs/ablations.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.data.augment import augmented
from onp.data.images import ImageSet
from onp.model.edit import with_tensors
from onp.model.graph_cut import GraphCut
from onp.model.prune import pruned_rows
from onp.model.pruned import pruned_units
from onp.model.victim import Victim

Advance = Callable[[int], None]
"""Called with the number of images that are done."""

PART = 64  # images at once


def _nothing(images: int) -> None:
    pass


@dataclass(frozen=True, eq=False)
class HealTrigger:
    """A change of images that the network is to ignore."""

    apply: Callable[[Tensor], Tensor]  #: float32 images `[N, C, H, W]` in [0, 1] to triggered images
    weight: float  #: share of the images that get it, in proportion to those of the others


@dataclass(frozen=True, eq=False)
class HealTask:
    """What is healed, and what it learns from."""

    pruned: Victim  #: its pruned units stay at zero; is not changed
    triggers: Sequence[HealTrigger]  #: at least one
    clean: ImageSet  #: images to learn from
    teachers: Sequence[Victim] = ()
    """Networks whose mean probabilities on clean images are learned; where there are none, those of `pruned`."""


@dataclass(frozen=True)
class HealConfig:
    """How a network is healed."""

    depth: float = 0.5  #: share of the convs and linear layers that stay as they are, from the image on
    copies: int = 6  #: of each clean image: itself and augmented ones
    steps: int = 150
    batch: int = 64  #: pairs
    lr: float = 0.018  #: of SGD with momentum 0.9, falls to 0 as a cosine
    triggered: float = 1 / 6  #: weight of the triggered images in the loss, beside those without
    temperature: float = 2.0
    max_grad_norm: float = 1.0  #: to which a larger gradient is scaled down
    values: int = 2**27  #: most numbers of features that are kept; large networks get fewer copies
    at_once: int = 256  #: images of a step, at most, that gradients are computed of together; changes memory and speed only
    seed: int = 0


def heal_images(images: int, config: HealConfig) -> int:
    """How many images `heal` counts as progress, at most."""
    return 2 * config.copies * images + 2 * config.steps * config.batch


def heal(task: HealTask, config: HealConfig, advance: Advance = _nothing) -> Victim:
    """Teach the later half of a pruned network to ignore triggers.

    Args:
        task: the network, triggers, images and teachers.
        config: settings.
        advance: called with the number of images done, `heal_images` in all.

    Returns:
        The healed network; its checkpoint holds the weights that were learned, in its own dtypes.

    Example:
        >>> task = HealTask(prune(victim, mask), [HealTrigger(stamp, 1.0)], clean)  # doctest: +SKIP
        >>> healed = heal(task, HealConfig())  # doctest: +SKIP
    """
    pruned = task.pruned
    cut = GraphCut.of(pruned.program, config.depth)
    pairs = _pairs(task, cut, _images(cut, task, config), advance)
    learned = {key: tensor.clone().requires_grad_() for key, tensor in cut.late_parameters().items()}
    rows = {key: each.to(pruned.device) for key, each in pruned_rows(pruned, pruned_units(pruned)).items() if key in learned}
    optimiser = torch.optim.SGD(learned.values(), config.lr, momentum=0.9)
    for done, chosen in _batches(len(pairs.teacher), config):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * (1 + math.cos(math.pi * done)) / 2
        optimiser.zero_grad()
        for part in chosen.split(max(1, config.at_once // 2)):
            logits = cut.logits(torch.cat((pairs.plain[part], pairs.triggered[part])), learned)
            losses = [_divergence(each, pairs.teacher[part], config.temperature) for each in logits.split(len(part))]
            loss = (1 - config.triggered) * losses[0] + config.triggered * losses[1]
            (loss * (len(part) / len(chosen))).backward()
        for key, pruned_row in rows.items():
            gradient = learned[key].grad
            assert gradient is not None
            gradient[pruned_row] = 0
        torch.nn.utils.clip_grad_norm_(learned.values(), config.max_grad_norm)
        optimiser.step()
        advance(2 * len(chosen))
    return with_tensors(pruned, {key: tensor.detach() for key, tensor in learned.items()})


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Features at the cut with and without a trigger, `[N, ...]`, and the logits to be learned `[N, classes]`."""

    plain: Tensor
    triggered: Tensor
    teacher: Tensor


def _images(cut: GraphCut, task: HealTask, config: HealConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and the same with a trigger, float32 `[N, C, H, W]` in [0, 1]: as they are, and augmented copies."""
    generator = torch.Generator().manual_seed(config.seed)
    pixels = task.clean.pixels().to(next(cut.program.parameters()).device)
    features = cut.features(pixels[:1]).numel()
    copies = max(1, min(config.copies, config.values // (2 * features * len(pixels))))
    weights = torch.tensor([trigger.weight for trigger in task.triggers], dtype=torch.float32)
    for number in range(copies):
        seed = int(torch.randint(2**31, (), generator=generator))
        images = pixels if number == 0 else augmented(pixels, 1, seed)
        which = torch.multinomial(weights, len(images), replacement=True, generator=generator).to(images.device)
        changed = torch.empty_like(images)
        for index, trigger in enumerate(task.triggers):
            rows = which == index
            if rows.any():
                changed[rows] = trigger.apply(images[rows])
        yield from zip(images.split(PART), changed.split(PART), strict=True)


@torch.no_grad()
def _pairs(task: HealTask, cut: GraphCut, images: Iterable[tuple[Tensor, Tensor]], advance: Advance) -> _Pairs:
    plain, triggered, teacher = [], [], []
    for pair in images:
        inputs = task.pruned.normalisation(pair[0])
        features = cut.features(inputs)
        plain.append(features)
        triggered.append(cut.features(task.pruned.normalisation(pair[1])))
        given = [
            each.model(inputs) if each is not task.pruned else cut.logits(features) for each in task.teachers or (task.pruned,)
        ]
        teacher.append(torch.stack([logits.log_softmax(1) for logits in given]).logsumexp(0))
        advance(2 * len(features))
    return _Pairs(torch.cat(plain), torch.cat(triggered), torch.cat(teacher))


def _batches(count: int, config: HealConfig) -> Iterator[tuple[float, Tensor]]:
    """The share of the steps done, and the pairs of the next step: each once before any comes again."""
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(config.steps):
        while len(order) < config.batch:
            order = torch.cat((order, torch.randperm(count, generator=generator)))
        chosen, order = order[: config.batch], order[config.batch :]
        yield step / config.steps, chosen


def _divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL divergence from the teacher's probabilities, both at a temperature; its gradient does not depend on that."""
    wanted, found = (teacher / temperature).softmax(1), (logits / temperature).log_softmax(1)
    return F.kl_div(found, wanted, reduction="batchmean") * temperature**2
