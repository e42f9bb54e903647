"""Gates between 0 and 1 for every unit, fitted by gradient descent to stop a true trigger: an order that knows of interplay.

As in ANP (Wu & Wang 2021, https://arxiv.org/abs/2110.14430) and RNP, but with the true trigger in place of a surrogate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.model.interpret import gated_forward
from onp.model.victim import Victim
from onp.search.unit_statistics import margin_of
from onp.zoo.truth import TrueImages

STEPS, BATCH, RATE = 60, 60, 0.05
STRICTNESS = 30.0  # weight of a nat of divergence on clean images against a nat of the attack
PRUNED = 1e-3  # of a unit that is switched off


def learned_gates(victim: Victim, images: TrueImages) -> Tensor:
    """How far each unit is switched off, float32 `[V]` in [0, 1], 0 for units that stay.

    Args:
        victim: the network.
        images: clean ones, and those of the first backdoor.
    """
    clean, triggered = images.clean.images, images.triggered[0]
    with torch.no_grad():
        base = torch.cat([victim.model(part) for part in clean.split(250)]).log_softmax(1)
    gates = torch.ones(victim.units, device=clean.device, requires_grad=True)
    optimizer = torch.optim.Adam([gates], RATE)
    for step in range(STEPS):
        rows = (step * BATCH + torch.arange(min(BATCH, len(clean)))) % len(clean)
        hit = (step * BATCH + torch.arange(min(BATCH, len(triggered.images)))) % len(triggered.images)
        logits = gated_forward(victim, torch.cat((clean[rows], triggered.images[hit])), gates)
        attack = F.softplus(margin_of(logits[len(rows) :], triggered.target[hit])).mean()
        divergence = F.kl_div(logits[: len(rows)].log_softmax(1), base[rows], reduction="batchmean", log_target=True)
        loss = attack + STRICTNESS * divergence + PRUNED * (1 - gates).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
    return (1 - gates.detach()).cpu()
