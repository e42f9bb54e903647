"""Training one network of the zoo: images, triggers, poisoning, the network itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.attack.config import AttackConfig
from onp.attack.making import make_trigger
from onp.attack.poisoning import Poisoner, poisoner_for, with_rates
from onp.attack.training import train
from onp.attack.triggers import SIG, TRIGGERS, BadNets, Blended, CraftingBudget, Trigger
from onp.data.images import ImageSet
from onp.zoo.recipe import Planted, Recipe

BUDGET = CraftingBudget(steps=40, unet_width=8, bits=16, batch=64)  # smaller than published: the zoo's images are few
CRAFT_EPOCHS = {"ssba": 3, "input_aware": 3}  # of networks that a trigger of an attack is made with


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and the triggers that it was poisoned with."""

    network: nn.Module  #: in eval mode, on the CPU
    triggers: tuple[Trigger, ...]  #: one for each backdoor of the recipe


class Poisoners:
    """Several backdoors in one network: an image that one of them changed is not changed by those after it."""

    def __init__(self, parts: Sequence[Poisoner]) -> None:
        self.parts = tuple(parts)
        self.optimisers = [optimiser for part in parts for optimiser in part.optimisers]
        taken = torch.zeros_like(self.parts[0].chosen)
        for part in self.parts:
            part.chosen, part.fixed_cover = part.chosen & ~taken, part.fixed_cover & ~taken
            taken = taken | part.chosen

    def __call__(
        self, images: Tensor, labels: Tensor, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """As `Poisoner` does."""
        out, goals, penalty = images, labels, torch.zeros(())
        for part in self.parts:
            changed, wanted, more = part(images, labels, index, generator)
            other = (changed != images).flatten(1).any(1)
            out = torch.where(other[:, None, None, None], changed, out)
            goals, penalty = torch.where(wanted != labels, wanted, goals), penalty + more
        return out, goals, penalty

    def state_dict(self) -> dict[str, Any]:
        """What training changed, for resuming."""
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])


def train_network(recipe: Recipe, train_set: ImageSet, work: Path) -> Trained:
    """Train the network of a recipe.

    Args:
        recipe: of the network.
        train_set: its images, as many and as unequal as the recipe says.
        work: folder for what an attack keeps while it makes its trigger.
    """
    config = attack_config(recipe, train_set.images.shape[1])
    poisoners, triggers = [], []
    for number, planted in enumerate(recipe.backdoors):
        one = planting(config, planted, number, train_set)
        kept = work / str(number)
        kept.mkdir(parents=True, exist_ok=True)
        trigger = instance(planted, train_set, torch.Generator().manual_seed(one.seed))
        if trigger is None:
            trigger, train_set = make_trigger(TRIGGERS[planted.attack], one, train_set, kept, BUDGET)
        poisoners.append(poisoner_for(trigger, train_set.labels, one, len(recipe.training.labels)))
        triggers.append(trigger)
    poisoner: Any = None if not poisoners else poisoners[0] if len(poisoners) == 1 else Poisoners(poisoners)
    network = train(train_set, config, poisoner)
    return Trained(network, tuple(part.trigger for part in poisoners))


def attack_config(recipe: Recipe, channels: int) -> AttackConfig:
    """The settings of the training, without a backdoor."""
    one = recipe.training
    return AttackConfig(
        attack="none",
        arch=one.spec(channels),
        norm=one.norm,
        epochs=one.epochs,
        batch_size=one.batch,
        lr=one.lr,
        optimiser=one.optimiser,
        weight_decay=one.weight_decay,
        smoothing=one.smoothing,
        averaging=one.averaging,
        pad=one.pad,
        flip=one.flip,
        seed=recipe.seed,
        device="cpu",
        quiet=True,
    )


def planting(config: AttackConfig, planted: Planted, number: int, train_set: ImageSet) -> AttackConfig:
    """The settings of backdoor `number`; a rate that the images do not allow is the highest that they do."""
    kind, labels = TRIGGERS[planted.attack], train_set.labels
    own = float((labels == planted.target).float().mean()) if kind.clean_label else 1.0
    rate = min(max(planted.poison_rate, 2 / len(labels)), own)
    one = dataclasses.replace(
        config,
        attack=planted.attack,
        target=planted.target,
        poison_rate=rate,
        cover_rate=None if planted.covers else 0.0,
        strength=planted.strength,
        seed=config.seed + 500_000 * number,
        craft_epochs=CRAFT_EPOCHS.get(planted.attack),
    )
    return with_rates(one, kind, labels)


def instance(planted: Planted, images: ImageSet, generator: torch.Generator) -> Trigger | None:
    """A trigger of the attack's kind that differs from network to network; None for attacks that draw or fit theirs.

    Args:
        planted: the backdoor.
        images: that it is made for.
        generator: of the draws.
    """
    channels, height, width = images.images.shape[1:]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    kind = TRIGGERS[planted.attack]
    if issubclass(kind, BadNets):
        size = [int(torch.randint(3, 6, (), generator=generator)) for _ in range(2)]
        colours = torch.rand((channels, 1, 1) if uniform(0, 1) < 0.5 else (channels, *size), generator=generator).round()
        pattern = colours.expand(channels, *size).clone()
        pattern[:, 0, 0] = 1.0  # on a black ground a black square would be none
        pattern[:, -1, -1] = 1.0
        return kind(pattern)
    if planted.attack == "blended":
        noise = torch.rand((channels, height, width), generator=generator)
        cells = int(torch.randint(3, 9, (), generator=generator))
        coarse = torch.rand((1, channels, cells, cells), generator=generator)
        smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)[0]
        return Blended(noise if uniform(0, 1) < 0.5 else smooth, 0.2 if planted.strength is None else planted.strength)
    if planted.attack == "sig":
        angle, periods, phase = uniform(0, math.pi), uniform(3, 8), uniform(0, 2 * math.pi)
        rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        wave = torch.sin(2 * math.pi * periods * (math.cos(angle) * columns + math.sin(angle) * rows) + phase)
        amplitude = 40 / 255 if planted.strength is None else planted.strength
        return SIG((amplitude * wave)[None].contiguous())
    return None
