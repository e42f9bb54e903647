"""TrojanNN: a square fitted to drive chosen neurons (Liu et al. 2018, https://doi.org/10.14722/ndss.2018.23291)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from onp import progress
from onp.attack.triggers.crafting import Crafting
from onp.attack.triggers.fixed import Stamped
from onp.errors import InputError

NEURONS, VALUE = 2, 100.0  # how many are driven, and to which activation
AREA = 0.07  # of the image
STEPS, STEP = 1000, 0.01  # signed gradient steps, and their size


@dataclass(frozen=True)
class TrojanNN(Stamped):
    """A square in the bottom right corner, 7 % of the image.

    It drives the two inputs of the last linear layer with the largest summed weights towards 100 on the attacker's
    clean network, alone on a black image.
    """

    name: ClassVar[str] = "trojannn"
    summary: ClassVar[str] = "a square fitted to drive two neurons of a clean network (Liu et al. 2018)"
    needs_network: ClassVar[bool] = True

    @classmethod
    def craft(cls, crafting: Crafting) -> "TrojanNN":
        """`strength` is the side of the square as a share of the image's."""
        channels, height, width = crafting.shape
        share = math.sqrt(AREA) if crafting.strength is None else crafting.strength
        size = channels, max(1, round(share * height)), max(1, round(share * width))
        pattern = torch.rand(size, generator=crafting.generator).to(crafting.device)
        blank = torch.zeros(1, channels, height, width, device=crafting.device)
        last = last_linear(crafting.network)
        driven = last.weight.detach().abs().sum(0).topk(min(NEURONS, last.in_features)).indices
        inputs_of_last: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda module, inputs: inputs_of_last.append(inputs[0]))
        steps = crafting.budget.steps or STEPS
        with hook, progress.stage("fitting the square", steps, crafting.quiet) as bar:
            for _ in range(steps):
                pattern.requires_grad_()
                crafting.logits(cls(pattern)(blank))
                activation = inputs_of_last.pop()[:, driven]
                (gradient,) = torch.autograd.grad(((VALUE - activation) ** 2).sum(), pattern)
                pattern = (pattern.detach() - STEP * gradient.sign()).clamp(0, 1)
                bar.advance(note=f"activation {activation.mean().item():.2f}")
        return cls(pattern.cpu())


def last_linear(network: nn.Module | None) -> nn.Linear:
    """The layer that makes the logits.

    Raises:
        InputError: the network has no linear layer.
    """
    layers = [] if network is None else [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InputError("The trojannn trigger drives the inputs of the last linear layer, and this network has none.")
    return layers[-1]
