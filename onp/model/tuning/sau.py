"""SAU: unlearn adversarial examples shared with the victim (Wei et al. 2023, https://arxiv.org/abs/2307.10562).

Examples within 0.2 of the normalised image in every pixel, 5 steps of 0.2 from +0.2: both networks should be wrong (weight
0.01) in the same way (Jensen-Shannon divergence, weight 1). Outer loss: CE on clean images - log(1 - p) of the victim's
answer to the example, summed where that answer is neither the label nor the victim's answer without it, by batch size. Adam
1e-4, 100 epochs of batches of 256, running statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data.images import ImageSet
from onp.model.tuning.common import Schedule, away_from, batches, descend, trainable, with_weights
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

BOUND, STEP, STEPS = 0.2, 0.2, 5
FOOL_WEIGHT, SHARE_WEIGHT = 0.01, 1.0
LEARNING_RATE, EPOCHS, BATCH = 1e-4, 100, 256


def tune(victim: Victim, clean: ImageSet, config: TuneConfig) -> Victim:
    """The victim after unlearning."""
    model = trainable(victim, config.pruned).eval()
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for _, x, y in batches(victim, clean, config, Schedule("SAU", epochs=EPOCHS, size=BATCH, passes=2 * STEPS + 2)):
        moved = shared_examples(model, victim.model, x, y)
        with torch.no_grad():
            answer, before = victim.model(moved).argmax(1), victim.model(x).argmax(1)
        fooled = (answer != y) & (answer != before)
        shared = away_from(model(moved).softmax(1), answer)[fooled].sum() / len(x)
        descend(optimiser, F.cross_entropy(model(x), y) + shared)
    return with_weights(victim, model)


def shared_examples(model: nn.Module, reference: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Examples [N, C, H, W], normalised, that lead both networks astray together."""
    delta = torch.full_like(x, BOUND)
    for _ in range(STEPS):
        delta.requires_grad_(True)
        ours, theirs = model(x + delta), reference(x + delta)
        answers = torch.stack((ours.argmax(1), theirs.argmax(1)))
        shared = (answers[0] == answers[1]) & (answers[0] != y)
        if bool(shared.all()):
            break
        right = (answers == y).to(x.dtype)
        fool = -sum(
            (F.cross_entropy(logits, y, reduction="none") * still).sum() / 2
            for logits, still in zip((ours, theirs), right, strict=True)
        )
        loss = FOOL_WEIGHT * fool + SHARE_WEIGHT * (divergence(ours, theirs) * (~shared)).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() - STEP * gradient.sign()).clamp(-BOUND, BOUND)
    return x + delta.detach()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two sets of logits [N, classes], per image."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2
