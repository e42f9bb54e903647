"""Unlearning clean images: the first stage of RNP and TSBD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from onp.compare.defences.config import DefenceConfig
from onp.data.images import ImageSet
from onp.engine.metrics import accuracy, predictions
from onp.model.tuning.common import BATCH, batches, trainable
from onp.model.victim import Victim

CLIP = 20.0  # norm of a step's gradient


def unlearned(victim: Victim, images: ImageSet, config: DefenceConfig, lr: float, floor: float, epochs: int) -> nn.Module:
    """A copy of the network after climbing the loss of clean images until its accuracy on them is at most `floor`.

    SGD with momentum 0.9 and weight decay 5e-4, at most `epochs` epochs, a tenth of `lr` after ten of them. The accuracy is
    looked at in every batch, since with few of them an epoch the loss would run away until its end, and with running
    statistics, which are what the unlearned network is used with.
    """
    model = trainable(victim)
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4, maximize=True)
    per_epoch = -(-len(images) // min(BATCH, len(images)))
    for step, (_, x, y) in enumerate(batches(victim, images, config, "unlearning", epochs=epochs, passes=2, changed=False)):
        for group in optimiser.param_groups:
            group["lr"] = lr if step < 10 * per_epoch else lr / 10
        if accuracy(y, predictions(model.eval(), x)).value <= floor:
            break
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
    return model
