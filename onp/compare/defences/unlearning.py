"""Unlearning clean images: the first stage of RNP and TSBD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from onp.compare.defences.config import DefenceConfig
from onp.data.images import ImageSet
from onp.engine.metrics import accuracy, predictions
from onp.model.tuning.common import BATCH, Schedule, batches, trainable
from onp.model.victim import Victim

CLIP = 20.0  # norm of a step's gradient


@dataclass(frozen=True)
class Unlearning:
    """How clean images are unlearned."""

    lr: float
    floor: float  #: accuracy on the images, at most, at which unlearning ends
    epochs: int  #: at most


def unlearned(victim: Victim, images: ImageSet, config: DefenceConfig, unlearning: Unlearning) -> nn.Module:
    """A copy of the network after gradient ascent on the loss of clean images.

    SGD with momentum 0.9 and weight decay 5e-4, a tenth of the learning rate after ten epochs. The accuracy is measured in
    every batch, since with few of them an epoch the loss would diverge before its end, and with running statistics, which are
    what the unlearned network is used with.
    """
    lr = unlearning.lr
    model = trainable(victim)
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4, maximize=True)
    per_epoch = -(-len(images) // min(BATCH, len(images)))
    schedule = Schedule("unlearning", epochs=unlearning.epochs, passes=2, augment=False)
    for step, (_, x, y) in enumerate(batches(victim, images, config, schedule)):
        for group in optimiser.param_groups:
            group["lr"] = lr if step < 10 * per_epoch else lr / 10
        if accuracy(y, predictions(model.eval(), x)).value <= unlearning.floor:
            break
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
    return model
