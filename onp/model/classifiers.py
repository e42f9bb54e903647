"""transformers' image classifiers as plain networks: one batch of images in, logits out."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from onp.errors import InputError


class PlainClassifier(nn.Module):
    """What `image_classifier` puts in front of a class of transformers."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(pixel_values=images).logits

    def names_in_files(self) -> dict[str, str]:
        """The network's name of each tensor by its name in files; from version 5 of transformers on they may differ.

        What is saved here is the number of each tensor in its place, which tells.
        Raises InputError where a file holds other tensors than the network, not just other names.
        """
        names = list(self.state_dict())
        numbers = {name: torch.tensor([index]) for index, name in enumerate(names)}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            self.save_pretrained(folder, state_dict=numbers)  # type: ignore[operator]
            with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
                stored = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118 - not a mapping
        if sorted(stored.values()) != [[index] for index in range(len(names))]:
            raise InputError("The files of this network hold other tensors than the network itself; give a .pt2 instead.")
        return {name: names[index] for name, (index,) in stored.items()}


def image_classifier(package: Any, model_type: str, options: dict[str, Any]) -> nn.Module:
    """The classifier that `package` (transformers) builds from a config, with fresh float32 weights; fetches nothing."""
    config = package.AutoConfig.for_model(model_type, **options)
    # Eager attention is ordinary operations; other kinds may be kernels that are downloaded.
    network: nn.Module = package.AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    # A subclass instead of a module around it, so that every tensor keeps its name.
    network.__class__ = type("PlainClassifier", (PlainClassifier, type(network)), {})
    return network.float()
