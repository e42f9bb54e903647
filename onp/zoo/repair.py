"""Repairing a network of the zoo with onp itself, as a user of its defence would who knows the trigger."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.from_memory import Given, case_from_memory
from onp.defend.run import Run
from onp.errors import InputError

PRESET = "fast"
IMAGES = 300


def repaired(network: nn.Module, images: ImageSet, norm: Normalisation, trigger: Trigger) -> tuple[nn.Module, int]:
    """The network after `onp defend --trigger` with the preset `PRESET`, and how many units were pruned: 0 where none were.

    Args:
        network: in eval mode; is not changed.
        images: clean ones.
        norm: of the network.
        trigger: the true one.
    """
    some = images.subset(range(min(IMAGES, len(images))))
    text = ",".join(map(str, norm.mean)) + "/" + ",".join(map(str, norm.std))
    run = Run.of(DefendConfig(norm=text, quiet=True, preset=PRESET))
    run = replace(run, preset=run.preset.with_known_trigger())
    given = Given(network, some.pixels(), some.labels, some.class_names, None, trigger)
    try:
        outcome = run_pipeline(case_from_memory(given, run), run)
    except InputError:  # a network that is right on too few images is refused
        return network, 0
    return outcome.network, outcome.mask.pruned_count
