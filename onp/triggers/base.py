"""What every trigger shares: image -> image, and a file that travels with the model it was trained into."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from onp.errors import InputError
from onp.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A fixed map from clean images to triggered images, both float32 `[N, C, H, W]` in [0, 1].

    Subclasses are frozen dataclasses whose tensor fields are saved as tensors and whose other fields as JSON.
    """

    name: ClassVar[str]

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def make(cls, shape: tuple[int, int, int], generator: torch.Generator, strength: float | None = None) -> Trigger:
        """Draw a trigger for images of `shape` (C, H, W); `strength` replaces the published amplitude."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the trigger as safetensors, its kind and scalars in the file's metadata."""
        tensors, scalars = {}, {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value.contiguous()
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
