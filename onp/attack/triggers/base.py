"""What every trigger shares: image -> image, how its attack poisons, and a file that travels with the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from onp.attack.triggers.crafting import Crafting, Shape
from onp.errors import InputError
from onp.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A map from clean images to triggered images, both float32 `[N, C, H, W]` in [0, 1].

    Subclasses are frozen dataclasses; their tensors, and dictionaries of tensors (the weights of a generator), are saved as
    tensors, the other fields as JSON. The class attributes describe the attack that plants the trigger.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  #: one line for --help
    #: published share of the training images that carry the trigger; of those of the target class for clean-label attacks
    share: ClassVar[float] = 0.1
    cover_share: ClassVar[float] = 0.0  #: published share of cover images, which keep their label
    clean_label: ClassVar[bool] = False  #: poisons images of the target class only and leaves every label
    all_to_all: ClassVar[bool] = False  #: leads class y to y + 1 instead of every class to the target
    strongest: ClassVar[float] = 1.0  #: most that `strength` may be
    needs_network: ClassVar[bool] = False  #: crafted with a network that the attacker trained on clean images

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def make(cls, shape: Shape, generator: torch.Generator, strength: float | None = None) -> Trigger:
        """Draw a trigger for images of `shape`; `strength` replaces the published amplitude.

        Raises InputError for triggers that are fitted to images: `craft` makes those.
        """
        raise InputError(f"A {cls.name} trigger is fitted to training images, which onp attack does.")

    @classmethod
    def craft(cls, crafting: Crafting) -> Trigger:
        """Make the trigger with all that the attacker has; `make` unless the attack fits its trigger."""
        return cls.make(crafting.shape, crafting.generator, crafting.strength)

    @classmethod
    def check_strength(cls, strength: float) -> None:
        """Raise InputError for an amplitude that makes no trigger of this kind."""
        if not 0 < strength <= cls.strongest:
            raise InputError(f"--strength of {cls.name} is above 0 and at most {cls.strongest:g}, not {strength}.")

    def example_shape(self) -> Shape:
        """C, H, W of images that the trigger takes."""
        return 3, 8, 8

    def check_amplitude(self) -> None:
        """Raise InputError where a field read from a file is one that `make` never gives a trigger of this kind."""

    def cover(self, images: Tensor, donors: Tensor, generator: torch.Generator) -> Tensor:
        """Cover images, which keep their label, of attacks that have them; `donors` are as many other clean images."""
        raise NotImplementedError

    def goals(self, labels: Tensor, target: int, classes: int) -> Tensor:
        """The class that images of class `labels` (int64 `[N]`) are led to: `target`, or y + 1 for all-to-all attacks."""
        return (labels + 1) % classes if self.all_to_all else torch.full_like(labels, target)

    def save(self, path: Path) -> None:
        """Write the trigger as safetensors, its kind and scalars in the file's metadata."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value.detach().contiguous()
            elif isinstance(value, dict):
                tensors |= {f"{field.name}.{key}": part.detach().contiguous() for key, part in value.items()}
            else:
                scalars[field.name] = value
        metadata = {"onp.trigger": self.name, "onp.scalars": json.dumps(scalars)}
        write_atomically(path, serialise(tensors, metadata))

    def check(self, images: Tensor, shape: tuple[int, ...]) -> None:
        """Raise InputError unless the images end in `shape`."""
        if tuple(images.shape[-len(shape) :]) != shape:
            found, wanted = "x".join(map(str, images.shape[1:])), "x".join(map(str, shape))
            raise InputError(
                f"This {self.name} trigger was made for images of {wanted}, not {found}; use the trigger of this model."
            )
