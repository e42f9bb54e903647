"""ACC, ASR and RA of a network and a trigger."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.engine.metrics import batches_of, measure
from onp.engine.scoring import TriggeredBatch


@torch.no_grad()
def measure_victim(
    network: nn.Module, images: ImageSet, norm: Normalisation, trigger: Trigger | None, target: int
) -> dict[str, float]:
    """Measure a network in float32, on its own device.

    Args:
        network: is switched to evaluation mode.
        images: clean test images.
        norm: of the network.
        trigger: None for a clean network, of which only the ACC is measured.
        target: the class that the trigger leads to; unused where the trigger leads every class y to y + 1.

    Returns:
        "acc", and with a trigger "asr" and "ra" on the images of other classes than they are led to; nan without such images.
    """
    network.eval()
    device = next(network.parameters()).device

    def triggered(trigger: Trigger) -> Iterator[TriggeredBatch]:
        classes = network(norm(images.subset(range(1)).pixels().to(device))).shape[1]
        for batch in batches_of(images, Normalisation.parse("none"), device):
            goals = trigger.goals(batch.labels, target, classes)
            yield TriggeredBatch(trigger.name, norm(trigger(batch.images)), batch.labels, goals)

    found = measure(network, batches_of(images, norm, device), triggered=triggered(trigger) if trigger else ())
    figures = {"acc": found.acc.value}
    if found.asr is not None and found.ra is not None:
        figures |= {"asr": found.asr.value, "ra": found.ra.value}
    return figures
