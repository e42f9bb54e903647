"""Networks that return more than logits: a dict, a tuple or the ModelOutput of transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LogitsAlone(nn.Module):
    """The forward of one batch of images to logits, put in front of the class of a network that returns more."""

    def forward(self, images: Tensor) -> Any:
        return logits_in(super().forward(images))


def logits_in(output: Any) -> Any:
    """The logits in what a network returns: `output["logits"]`, `output.logits` or the first of a tuple; else `output`."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, (tuple, list)) and output else output


def returning_logits(network: nn.Module, images: Tensor) -> nn.Module:
    """The network itself, with logits for its output where it returns them among others.

    Args:
        network: is changed; every tensor keeps its name.
        images: float32 `[N, C, H, W]` normalised, to try it with.
    """
    try:
        with torch.no_grad():
            output = network(images)
    except (Exception, SystemExit):  # whatever the user's code raises; the caller tries it again and says what it was
        return network
    if not isinstance(output, Tensor) and isinstance(logits_in(output), Tensor):
        # A subclass instead of a module around it, so that every tensor keeps its name.
        network.__class__ = type(type(network).__name__, (LogitsAlone, type(network)), {})
    return network


def as_given(network: nn.Module) -> nn.Module:
    """The network with the output that it had before `returning_logits`; shares its tensors."""
    if not isinstance(network, LogitsAlone):
        return network
    given = copy.copy(network)
    given.__class__ = type(network).__mro__[2]
    return given
