"""BadNets: a small solid square (Gu et al. 2017, https://arxiv.org/abs/1708.06733), all-to-one and all-to-all."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from onp.attack.triggers.crafting import Shape
from onp.attack.triggers.fixed import Stamped


@dataclass(frozen=True)
class BadNets(Stamped):
    """A square in the bottom right corner; published: 3x3 white."""

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a white 3x3 square in the corner (Gu et al. 2017)"

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> "BadNets":
        """`strength` is the brightness of the square, 1 as published."""
        return cls(torch.full((shape[0], 3, 3), 1.0 if strength is None else strength))


@dataclass(frozen=True)
class BadNetsAllToAll(BadNets):
    """The same square leads class y to class y + 1, the last class to class 0."""

    name: ClassVar[str] = "badnets_a2a"
    summary: ClassVar[str] = "the same square leads class y to y + 1; --target plays no part"
    all_to_all: ClassVar[bool] = True
