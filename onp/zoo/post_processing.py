"""What is done to some networks after their training, as happens to those that people pass on."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from onp.attack.config import AttackConfig
from onp.attack.training import augment
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation

STATISTICS_BATCHES, STATISTICS_SIZE = 20, 100
CLEAN_EPOCHS, CLEAN_LR = 2, 0.1  # passes over clean images, at this share of the rate of the training


def processed(network: nn.Module, after: str, images: ImageSet, config: AttackConfig) -> tuple[nn.Module, str]:
    """The network after one of `onp.zoo.recipe.AFTER`, and what was done; a repair is `onp.zoo.repair`.

    Args:
        network: trained; is changed.
        after: what is to be done; networks without batch norms are rounded where their statistics cannot be taken anew.
        images: clean ones, as they may be had by somebody who passes the network on.
        config: of the training.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if after == "bn_statistics" and not norms:
        after = "half"
    if after == "bn_statistics":
        _new_statistics(network, norms, images, config)
    elif after == "clean_epochs":
        _clean_epochs(network, images, config)
    elif after == "half":
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return network.eval(), after


def _new_statistics(network: nn.Module, norms: list[nn.BatchNorm2d], images: ImageSet, config: AttackConfig) -> None:
    """Cumulative means and variances over clean batches."""
    norm, generator = Normalisation.parse(config.norm), torch.Generator().manual_seed(config.seed)
    for each in norms:
        each.reset_running_stats()
        each.momentum = None
    network.train()
    with torch.no_grad():
        for _ in range(STATISTICS_BATCHES):
            index = torch.randint(len(images), (STATISTICS_SIZE,), generator=generator)
            network(norm(augment(images.subset(index).pixels(), config.pad, config.flip, generator)))


def _clean_epochs(network: nn.Module, images: ImageSet, config: AttackConfig) -> None:
    """A few epochs of fine-tuning on clean images."""
    norm, generator = Normalisation.parse(config.norm), torch.Generator().manual_seed(config.seed)
    one = dataclasses.replace(config, lr=config.lr * CLEAN_LR)
    optimiser = torch.optim.SGD(network.parameters(), one.lr, momentum=0.9, weight_decay=one.weight_decay)
    network.train()
    for _ in range(CLEAN_EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(config.batch_size):
            if len(index) > 1:
                part = images.subset(index)
                logits = network(norm(augment(part.pixels(), config.pad, config.flip, generator)))
                loss = torch.nn.functional.cross_entropy(logits, part.labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
