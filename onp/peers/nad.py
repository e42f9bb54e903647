"""NAD: distil the attention of a fine-tuned teacher (Li et al. 2021, https://arxiv.org/abs/2101.05930).

The teacher is the victim fine-tuned for 10 epochs; the student descends CE + sum of beta * MSE of the attention maps, A = the
channel sum of squares, normalised by image. SGD 0.01 for 20 epochs, then 1e-4, 100 in all, weight decay 1e-4. Maps are taken
after the last layer of each of the last three stages of the network that still have more than one pixel: a map of one pixel
is always 1 after normalising and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data import ImageSet
from onp.errors import InputError
from onp.peers.config import PeerConfig
from onp.peers.ft import fine_tuned
from onp.peers.tuning import batches, descend, trainable, with_weights
from onp.program import gated_forward
from onp.victim import Victim

TEACHER_EPOCHS, EPOCHS, FAST_EPOCHS = 10, 100, 20
FAST_RATE, SLOW_RATE = 0.01, 1e-4
BETAS = (500.0, 1000.0, 1000.0)  # first to last map


def tune(victim: Victim, clean: ImageSet, config: PeerConfig) -> Victim:
    """The student."""
    teacher = fine_tuned(victim, clean, config, TEACHER_EPOCHS, "NAD teacher").eval().requires_grad_(False)
    student = trainable(victim)
    places = map_modules(victim)
    taught, learned = Attention(teacher, places), Attention(student, places)
    betas = BETAS[-len(places) :] if places else ()
    optimiser = torch.optim.SGD(student.parameters(), FAST_RATE, momentum=0.9, weight_decay=1e-4)
    for done, x, y in batches(victim, clean, config, "NAD", epochs=EPOCHS, passes=2):
        for group in optimiser.param_groups:
            group["lr"] = FAST_RATE if done < FAST_EPOCHS / EPOCHS else SLOW_RATE
        logits, mine = learned(x)
        with torch.no_grad():
            _, theirs = taught(x)
        loss = F.cross_entropy(logits, y)
        for beta, ours, goal in zip(betas, mine, theirs, strict=True):
            loss = loss + beta * F.mse_loss(ours, goal)
        descend(optimiser, loss)
    learned.close()
    return with_weights(victim, student)


def map_modules(victim: Victim) -> tuple[str, ...]:
    """Paths of the modules whose outputs give the maps: the last conv, or its norm, of each of the last three stages."""
    sizes = torch.ones(victim.units, device=victim.device)
    x = victim.normalisation(torch.zeros((2, *victim.input_shape), device=victim.device))
    convs = [layer for layer in victim.layers if layer.kind == "conv"]
    outputs = gated_forward(victim, x, sizes, outputs=[layer.node for layer in convs])[1] if convs else {}
    last = {layer.stage: layer for layer in convs if outputs[layer.node][0, 0].numel() > 1}
    places = [(layer.norm[0] if layer.norm else layer.weight).rpartition(".")[0] for layer in last.values()]
    if not places:
        raise InputError("The network has no feature maps of more than one pixel for NAD to compare.")
    return tuple(places[-len(BETAS) :])


class Attention:
    """Runs a network and collects the attention maps of some of its modules."""

    def __init__(self, model: nn.Module, places: tuple[str, ...]) -> None:
        self._model, self._maps = model, dict.fromkeys(places, torch.empty(0))
        self._hooks = [model.get_submodule(place).register_forward_hook(self._keep(place)) for place in places]

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and, per place, attention [N, pixels] of length 1."""
        logits = self._model(x)
        return logits, [F.normalize(value.relu().square().sum(1).flatten(1), dim=1) for value in self._maps.values()]

    def close(self) -> None:
        """Take the hooks out of the network."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, place: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._maps[place] = output

        return hook
