"""The logits of a network together with its last features, where these are a vector that the last layer is linear on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from onp.detect.head import Head, head_of
from onp.engine.differentiable import Forward, forward_of
from onp.engine.metrics import at_once
from onp.model.interpret import logits_node
from onp.model.victim import Victim
from onp.threads import run_all

MOST_READ = 250  # images at once


@dataclass(frozen=True, eq=False)
class Reader:
    """A network's logits, and its last features where these are a vector."""

    forward: Forward
    head: Head | None  #: None where the last layer is not linear on a vector
    name: str  #: of the features
    device: torch.device  #: of the network

    @torch.no_grad()
    def read(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits float32 `[N, classes]` and features float32 `[N, D]`, None without a head, on the CPU.

        Args:
            pixels: float32 `[N, C, H, W]` in [0, 1].
        """
        together = at_once(pixels, MOST_READ)
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        parts = pixels.split(max(1, -(-min(together, len(pixels)) // workers)))
        read = run_all(lambda place: self.forward(parts[place]), range(len(parts)), workers)
        logits = torch.cat([part[0] for part in read]).cpu()
        return logits, None if self.head is None else torch.cat([part[1][self.name] for part in read]).cpu()

    def logits(self, pixels: Tensor) -> Tensor:
        """The logits alone."""
        return self.read(pixels)[0]

    def features(self, pixels: Tensor) -> Tensor:
        """Of a network with a head."""
        features = self.read(pixels)[1]
        assert features is not None
        return features


def reader_of(victim: Victim) -> Reader:
    """How the last features of the victim are read."""
    head, name = head_of(victim), ""
    if head is not None:
        features = logits_node(victim.program.graph).args[0]
        assert isinstance(features, fx.Node)
        head, name = (head if features.meta["val"].dim() == 2 else None), features.name
    return Reader(forward_of(victim, () if head is None else (name,)), head, name, victim.device)
