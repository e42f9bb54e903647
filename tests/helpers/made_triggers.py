"""A trigger of every kind, quickly made with small generators and few steps."""

import torch
from torch import nn

from onp.attack.triggers import SSBA, TRIGGERS, Crafting, CraftingBudget, InputAware
from onp.attack.triggers.unet import random_weights
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation

FITTED = {"ssba", "lf", "trojannn"}
BUDGET = CraftingBudget(steps=40, unet_width=8)


def images(n=6, shape=(3, 32, 32)):
    return torch.rand((n, *shape))


def small_network(channels=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def crafting(shape, seed=0, budget=BUDGET, **more):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (40, *shape), generator=generator, dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(40) % 5, tuple("abcde"))
    network = small_network(shape[0])
    norm = Normalisation.parse("half")
    return Crafting(data, 0, generator, torch.device("cpu"), network=network, norm=norm, budget=budget, quiet=True, **more)


def trigger_for(name, shape=(3, 32, 32), seed=1):
    """A trigger of each kind; the ssba encoder is untrained, since only its shape matters to the tests that use it."""
    generator = torch.Generator().manual_seed(seed)
    if name == "ssba":
        secret, width = torch.randn(1, *shape[1:], generator=generator), BUDGET.unet_width
        return SSBA(secret, random_weights(shape[0] + 1, shape[0], width, generator), 1.0)
    if name == "input_aware":
        return InputAware.make(shape, generator, width=BUDGET.unet_width)
    if name in FITTED:
        return TRIGGERS[name].craft(crafting(shape, seed))
    return TRIGGERS[name].make(shape, generator)
