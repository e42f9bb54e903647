"""FT: fine-tuning on clean images, the baseline of every defence that trains.

SGD 0.01 with momentum 0.9 and weight decay 5e-4, cosine schedule, 100 epochs, as in BackdoorBench (https://arxiv.org/abs/2206.12654).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from onp.data.images import ImageSet
from onp.model.tuning.common import Schedule, batches, cosine, descend, trainable, with_weights
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

LEARNING_RATE = 0.01
EPOCHS = 100


def tune(victim: Victim, clean: ImageSet, config: TuneConfig) -> Victim:
    """The victim fine-tuned on `clean`."""
    return with_weights(victim, fine_tuned(victim, clean, config, EPOCHS, "fine-tuning"))


def fine_tuned(victim: Victim, clean: ImageSet, config: TuneConfig, epochs: int, name: str) -> nn.Module:
    """A copy of the network after `epochs` epochs of the recipe above; `name` is what the progress says."""
    model = trainable(victim, config.pruned)
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    for done, x, y in batches(victim, clean, config, Schedule(name, epochs=epochs)):
        cosine(optimiser, LEARNING_RATE, done)
        descend(optimiser, F.cross_entropy(model(x), y))
    return model
