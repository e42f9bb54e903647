"""ACC, ASR and RA of a network and a trigger."""

from __future__ import annotations

import math

import torch
from torch import nn

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet, Normalisation


@torch.no_grad()
def measure(
    network: nn.Module,
    data: ImageSet,
    norm: Normalisation,
    trigger: Trigger | None,
    target: int,
    device: torch.device,
    batch: int = 500,
) -> dict[str, float]:
    """ACC on clean images, ASR and RA on triggered images that are not of the class they are led to; float32, eval mode.

    That class is `target`, or y + 1 for an all-to-all trigger, for which `target` plays no part; nan without such images.
    """
    network = network.eval().to(device)
    clean_hits = attack_hits = robust_hits = victims = 0
    for start in range(0, len(data), batch):
        part = data.subset(torch.arange(start, min(start + batch, len(data))))
        images, labels = part.pixels().to(device), part.labels
        logits = network(norm(images))
        clean_hits += int((logits.argmax(1).cpu() == labels).sum())
        if trigger is None:
            continue
        goals = trigger.goals(labels, target, logits.shape[1])
        other = labels != goals
        guess = network(norm(trigger(images[other.to(device)]))).argmax(1).cpu()
        attack_hits += int((guess == goals[other]).sum())
        robust_hits += int((guess == labels[other]).sum())
        victims += int(other.sum())
    result = {"acc": clean_hits / len(data)}
    if trigger is not None:
        result |= {name: hits / victims if victims else math.nan for name, hits in (("asr", attack_hits), ("ra", robust_hits))}
    return result
