"""Which training images an attack changes, and what they become."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from onp.attack.config import AttackConfig
from onp.attack.triggers.adaptive_blend import AdaptiveBlend, draw_pieces
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.input_aware import InputAware, diversity
from onp.errors import InputError


def with_rates(config: AttackConfig, kind: type[Trigger], labels: Tensor) -> AttackConfig:
    """`config` with the attack's published rates where none are given; `labels` int64 `[N]` of the training images.

    Raises:
        InputError: a rate does not suit the attack or the images.
    """
    share = float((labels == config.target).float().mean()) if kind.clean_label else 1.0
    poison_rate = kind.share * share if config.poison_rate is None else config.poison_rate
    cover_rate = kind.cover_share if config.cover_rate is None else config.cover_rate
    if not (0 < poison_rate <= 1 and 0 <= cover_rate <= 1):
        raise InputError("--poison-rate is a share of the training images above 0 and at most 1, --cover-rate from 0 to 1.")
    if poison_rate + cover_rate > 1:
        raise InputError(f"--poison-rate {poison_rate:g} and --cover-rate {cover_rate:g} are more than all images; lower one.")
    if cover_rate and not kind.cover_share:
        raise InputError(f"The attack {kind.name} has no cover images; leave --cover-rate out.")
    if round(poison_rate * len(labels)) == 0:
        raise InputError(f"--poison-rate {poison_rate:g} of {len(labels)} images is none; raise it, or give more images.")
    if round(poison_rate * len(labels)) > round(share * len(labels)):
        raise InputError(
            f"The attack {kind.name} poisons images of the target class only, which are {share:.4g} of the training images; "
            f"give a --poison-rate of at most {share:.4g}, not {poison_rate:g}."
        )
    return dataclasses.replace(config, poison_rate=poison_rate, cover_rate=cover_rate)


def choose_poisoned(labels: Tensor, config: AttackConfig, clean_label: bool = False) -> Tensor:
    """Which training images carry the trigger, bool `[N]`; with `clean_label` only such of the target class."""
    return _poisoned_and_covers(labels, config, clean_label)[0]


def _poisoned_and_covers(labels: Tensor, config: AttackConfig, clean_label: bool) -> tuple[Tensor, Tensor]:
    """The images that carry the trigger and, disjoint from them, a fixed choice of cover images; both bool `[N]`."""
    assert config.poison_rate is not None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
    if clean_label:
        order = order[labels[order] == config.target]
    poisoned, covers = (round((rate or 0) * len(labels)) for rate in (config.poison_rate, config.cover_rate))
    chosen, cover = torch.zeros(2, len(labels), dtype=torch.bool)
    chosen[order[:poisoned]] = True
    cover[order[poisoned : poisoned + covers]] = True
    return chosen, cover


class Poisoner:
    """Poisons the training images batch by batch, before augmentation.

    `optimisers` are stepped with the victim's; they and `state_dict` are empty but for triggers that are trained along.
    """

    def __init__(self, trigger: Trigger, labels: Tensor, config: AttackConfig, classes: int) -> None:
        self.trigger, self.config, self.classes = trigger, config, classes
        self.chosen, self.fixed_cover = _poisoned_and_covers(labels, config, trigger.clean_label)
        self.optimisers: list[torch.optim.Optimizer] = []

    def __call__(
        self, images: Tensor, labels: Tensor, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """What the batch becomes: images, labels, and a loss of the trigger's own.

        images: float32 `[B, C, H, W]` in [0, 1]; labels: int64 `[B]`; index: int64 `[B]`, their places in the training set
        """
        chosen, out = self.chosen[index], images.clone()
        if self.trigger.cover_share:
            cover = self._cover(chosen, index, generator)
            if bool(cover.any()):
                out[cover] = self._covered(images, cover, index, generator)
        out[chosen] = self._triggered(images[chosen], index[chosen])
        penalty = self._penalty(images, chosen)
        if not self.trigger.clean_label:
            labels = torch.where(chosen, self.trigger.goals(labels, self.config.target, self.classes), labels)
        return out, labels, penalty

    def _cover(self, chosen: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        """Cover images are drawn anew in every batch, among those that carry no trigger, so that their share is of all."""
        assert self.config.poison_rate is not None and self.config.cover_rate is not None
        share = self.config.cover_rate / (1 - self.config.poison_rate) if self.config.cover_rate else 0.0
        return ~chosen & (torch.rand(len(chosen), generator=generator) < share)

    def _covered(self, images: Tensor, cover: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        return self.trigger.cover(images[cover], images.roll(1, 0)[cover], generator)

    def _triggered(self, images: Tensor, index: Tensor) -> Tensor:
        return self.trigger(images)

    def _penalty(self, images: Tensor, chosen: Tensor) -> Tensor | float:
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """What training changed, for resuming."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class PiecesPoisoner(Poisoner):
    """Adaptive-Blend poisons data, not training: cover images and the pieces that each image carries are fixed."""

    trigger: AdaptiveBlend

    def __init__(self, trigger: AdaptiveBlend, labels: Tensor, config: AttackConfig, classes: int) -> None:
        super().__init__(trigger, labels, config, classes)
        self.pieces = draw_pieces(len(labels), torch.Generator().manual_seed(config.seed))

    def _cover(self, chosen: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        return self.fixed_cover[index]

    def _covered(self, images: Tensor, cover: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        return self.trigger.partly(images[cover], self.pieces[index[cover]])

    def _triggered(self, images: Tensor, index: Tensor) -> Tensor:
        return self.trigger.partly(images, self.pieces[index])


class GeneratorPoisoner(Poisoner):
    """Input-aware: the generator learns with the victim, from its loss and from the diversity of the patterns."""

    trigger: InputAware

    def __init__(self, trigger: InputAware, labels: Tensor, config: AttackConfig, classes: int) -> None:
        # Sorted, since the optimiser's state goes by position and a trigger read from its file has another order.
        weights = {key: value.clone().requires_grad_() for key, value in sorted(trigger.generator.items())}
        super().__init__(dataclasses.replace(trigger, generator=weights), labels, config, classes)
        self.optimisers = [torch.optim.Adam(weights.values(), 0.01, betas=(0.5, 0.9))]

    def _penalty(self, images: Tensor, chosen: Tensor) -> Tensor | float:
        return diversity(images[chosen], self.trigger.pattern(images[chosen])) if int(chosen.sum()) > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        weights = {key: value.detach() for key, value in self.trigger.generator.items()}
        return {"generator": weights, "optimiser": self.optimisers[0].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for key, value in self.trigger.generator.items():
                value.copy_(state["generator"][key])
        self.optimisers[0].load_state_dict(state["optimiser"])


def poisoner_for(trigger: Trigger, labels: Tensor, config: AttackConfig, classes: int) -> Poisoner:
    """The policy of the attack that `trigger` belongs to; `labels` int64 `[N]` of the training images, `config` any rates.

    Raises InputError where the rates do not suit the attack or the images.
    """
    config = with_rates(config, type(trigger), labels)
    if isinstance(trigger, AdaptiveBlend):
        return PiecesPoisoner(trigger, labels, config, classes)
    if isinstance(trigger, InputAware):
        return GeneratorPoisoner(trigger, labels, config, classes)
    return Poisoner(trigger, labels, config, classes)
