"""A trigger of every kind, quickly made, for the tests of what they have in common and of their recipes."""

import torch
from torch import nn

from onp.attack.triggers import SSBA, TRIGGERS, Crafting, unet
from onp.data.images import ImageSet, Normalisation

FITTED = {"ssba", "lf", "trojannn"}


def images(n=6, shape=(3, 32, 32)):
    return torch.rand((n, *shape))


def small_network(channels=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def crafting(shape, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (40, *shape), generator=generator, dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(40) % 5, tuple("abcde"))
    network = small_network(shape[0])
    return Crafting(
        data, 0, generator, torch.device("cpu"), network=network, norm=Normalisation.parse("half"), quiet=True, **more
    )


def trigger_for(name, shape=(3, 32, 32), seed=1):
    """A trigger of each kind; the ssba encoder is untrained, since only its shape matters to the tests that use it."""
    generator = torch.Generator().manual_seed(seed)
    if name == "ssba":
        return SSBA(torch.randn(1, *shape[1:], generator=generator), unet.draw(shape[0] + 1, shape[0], generator), 1.0)
    if name in FITTED:
        return TRIGGERS[name].craft(crafting(shape, seed))
    return TRIGGERS[name].make(shape, generator)
