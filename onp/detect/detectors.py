"""What is asked of a network without fitting a trigger: what it takes changed images for, and how near classes lie inside."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from onp.data.augment import views
from onp.data.images import ImageSet
from onp.detect.latent import latent_directions
from onp.model.interpret import constant, gated_forward, head_input, logits_node
from onp.model.victim import Victim

DRIFT_COPIES = 4


@torch.no_grad()
def drift(victim: Victim, images: ImageSet, seed: int) -> Tensor:
    """Mean probability, float32 `[classes]`, of each class on changed copies of images of other classes.

    A backdoor answers to many changes of an image that are not its trigger, so its target attracts much of what the network
    gets wrong. (TeCo, https://arxiv.org/abs/2303.18191, reads corrupted images too, but those with the trigger on.)
    """
    pixels = views(images.pixels(), DRIFT_COPIES, seed).to(victim.device)
    chance = torch.cat([victim.logits(part).softmax(1) for part in pixels.split(64)]).cpu()
    labels = images.labels.repeat(DRIFT_COPIES)
    return torch.stack([chance[labels != k, k].mean() for k in range(victim.classes)])


def latent_distances(victim: Victim, images: ImageSet) -> Tensor | None:
    """Length float32 `[classes]` of the latent minimum-norm direction; None where the head is not linear on a vector."""
    head = logits_node(victim.program.graph)
    if (
        head.target is not torch.ops.aten.linear.default
        or not all(isinstance(node, fx.Node) for node in head.args[1:3])
        or len(head.args) < 3
    ):
        return None
    weight, bias = (constant(victim.program, node) for node in head.args[1:3] if isinstance(node, fx.Node))
    inputs = victim.normalisation(images.pixels().to(victim.device))
    name, gates = head_input(victim), torch.ones(victim.units, device=victim.device)
    with torch.no_grad():
        features = torch.cat([gated_forward(victim, part, gates, outputs=(name,))[1][name] for part in inputs.split(64)])
    if features.dim() != 2:
        return None
    return latent_directions(features.cpu(), weight.cpu(), bias.cpu()).norm(dim=1)
