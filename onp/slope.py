"""To first order: what flipping each unit alone would change, in the network as it is pruned now.

The gradient by the gates of what a search is judged by, not of a stand-in for it: measured on the same images, with the
weights that the objective gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.program import gated_forward
from onp.tally import Batch, TriggeredBatch
from onp.unit_statistics import chunks, margin_of
from onp.victim import Victim

CLOSED = 1e-3  # gate of a pruned unit: at 0 a ReLU behind it would hide what would come back
IMAGES = 128  # at most, of each kind; half as many large ones, which rank flips nearly as well at half the price
LARGE = 64 * 64  # pixels

Weighted = Sequence[tuple[TriggeredBatch, float]]


def slope(victim: Victim, keep: Tensor, clean: Batch, divergence: float, triggered: Weighted, copies: Weighted) -> Tensor:
    """float32 [V] on the CPU: the gain expected of pruning each kept unit, or of bringing each pruned one back.

    keep: bool [V], the units that are left; divergence: worth of a nat of divergence on `clean` from the unpruned network;
    triggered: what an ASR on each batch costs; copies: what an ASR on each is worth.
    Cost: a forward and a backward pass over at most `IMAGES` clean images, as many triggered ones and as many copies.
    """
    count = IMAGES // 2 if clean.images[0, 0].numel() > LARGE else IMAGES
    gates = torch.where(keep, 1.0, CLOSED).to(victim.device)
    direction = torch.where(keep, 1.0, -1.0)

    used = [_aimed(batch, count // len(triggered)) for batch, _ in triggered]
    gain = torch.zeros(victim.units)
    for (images, target), (_, weight) in zip(used, triggered, strict=True):
        margin, gradient = margins(victim, images, target, gates)
        # An attack that always works has no slope, yet units that each take a part of it end it together.
        gain += weight * float(torch.sigmoid(margin).mean()) * share_taken(margin, direction * gradient)

    def diverged(logits: Tensor, images: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            whole = victim.model(images).log_softmax(1)
        return F.kl_div(logits.log_softmax(1), whole, reduction="sum", log_target=True)

    images, labels = thin(clean.images, clean.labels, count)
    rising = divergence * _gradient(victim, images, labels, gates, diverged)
    for batch, weight in copies:
        images, target = _aimed(batch, count // len(copies))
        rising -= weight * _gradient(victim, images, target, gates, _hits)
    return gain + direction * rising


def share_taken(margin: Tensor, change: Tensor) -> Tensor:
    """Of sum log(1 + exp margin), the share [V] that a unit takes which lowers the margins [N] by `change` [N, V]; at most 1.

    That sum falls with the margin where a trigger works, however well, and ignores images where it fails already.
    """
    strength = F.softplus(margin)
    left = F.softplus(margin[:, None] - change)
    return (strength[:, None] - left).mean(0) / strength.mean().clamp_min(1e-6)


def margins(victim: Victim, images: Tensor, labels: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """The label's margin [N], and its gradient [N, V] by the gates, float [V], of each image; on the CPU."""
    parts = []
    for x, y in chunks(images, labels):
        each = gates.expand(len(x), -1).clone().requires_grad_()
        margin = margin_of(gated_forward(victim, x, each), y)
        (gradient,) = torch.autograd.grad(margin.sum(), each)
        parts.append((margin.detach().cpu(), gradient.cpu()))
    found, gradients = zip(*parts, strict=True)
    return torch.cat(found), torch.cat(gradients)


def thin(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` images, evenly spread so that sorted sets keep all their classes."""
    if len(images) <= count:
        return images, labels
    picked = torch.linspace(0, len(images) - 1, max(count, 1)).round().long().to(images.device)
    return images[picked], labels[picked]


def _aimed(batch: TriggeredBatch, count: int) -> tuple[Tensor, Tensor]:
    """Images that count, and the classes they are led to."""
    aimed = batch.labels != batch.target
    return thin(batch.images[aimed], batch.target[aimed], count)


def _hits(logits: Tensor, _: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, target[:, None]).sum()


def _gradient(
    victim: Victim, images: Tensor, labels: Tensor, gates: Tensor, summed: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Gradient [V] by the gates of the mean over images of what `summed(logits, images, labels)` adds up."""
    total = torch.zeros(victim.units)
    for x, y in chunks(images, labels):
        shared = gates.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(summed(gated_forward(victim, x, shared), x, y), shared)
        total += gradient.cpu()
    return total / len(images)
