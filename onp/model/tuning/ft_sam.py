"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation (Zhu et al. 2023, https://arxiv.org/abs/2304.11823).

Each step takes the gradient at w + rho * w^2 g / || |w| g ||, rho = 2; label smoothing 0.1, SGD 0.01 with momentum 0.9 and
weight decay 5e-4, cosine schedule by batch, 100 epochs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onp.data.images import ImageSet
from onp.model.tuning.common import Schedule, batches, cosine, trainable, with_weights
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim

RHO = 2.0
LEARNING_RATE = 0.01
EPOCHS = 100
SMOOTHING = 0.1


def tune(victim: Victim, clean: ImageSet, config: TuneConfig) -> Victim:
    """The victim fine-tuned on `clean`."""
    model = trainable(victim, config.pruned)
    parameters = list(model.parameters())
    optimiser = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    for done, x, y in batches(victim, clean, config, Schedule("FT-SAM", epochs=EPOCHS, passes=2)):
        cosine(optimiser, LEARNING_RATE, done)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y, label_smoothing=SMOOTHING), parameters)
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            products = [(w.abs() * g).norm() for w, g in zip(parameters, gradients, strict=True)]
            length = torch.stack(products).norm().clamp_min(1e-12)
            for w, g in zip(parameters, gradients, strict=True):
                w.add_(RHO * w.square() * g / length)
        loss = F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            for w, old in zip(parameters, before, strict=True):
                w.copy_(old)
        optimiser.step()
    return with_weights(victim, model)
