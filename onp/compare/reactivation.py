"""Re-activation: the attack success rate after a little training, as an owner or an attacker of a repaired network does it.

Pruned and tuned networks are known to get their backdoor back so (Min et al. 2024, "Uncovering, Explaining, and Mitigating the
Superficial Safety of Backdoor Defense", https://arxiv.org/abs/2410.09838): a few poisoned images among the clean ones suffice.
"""

from __future__ import annotations

import torch
from torch import nn

from onp.attack.triggers import Trigger
from onp.compare.defences import DefenceConfig
from onp.data.images import ImageSet
from onp.model.tuning.ft import fine_tuned
from onp.model.victim import Victim

EPOCHS = 5
POISONED = 5  # images with the trigger and its label


def reactivated(victim: Victim, images: ImageSet, seed: int) -> nn.Module:
    """The network after `EPOCHS` epochs of fine-tuning (SGD at a rate of 0.01), in eval mode.

    Args:
        victim: a repaired network; is not changed.
        images: the clean images, or those of `with_poisoned`.
        seed: of their order.
    """
    return fine_tuned(victim, images, DefenceConfig(seed=seed), EPOCHS, "re-activation").eval()


def with_poisoned(clean: ImageSet, trigger: Trigger, target: int, classes: int) -> ImageSet:
    """The clean images, and the first `POISONED` that the trigger leads to another class, with it and labelled so.

    Args:
        clean: the images of a defence.
        trigger: the true one.
        target: where it leads.
        classes: of the network.
    """
    goals = trigger.goals(clean.labels, target, classes)
    chosen = (clean.labels != goals).nonzero()[:POISONED, 0]
    with torch.no_grad():
        triggered = trigger(clean.pixels()[chosen])
    images = torch.cat((clean.images, (triggered * 255).round().to(torch.uint8)))
    return ImageSet(images, torch.cat((clean.labels, goals[chosen])), clean.class_names)
