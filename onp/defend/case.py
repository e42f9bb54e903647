"""What a run works on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits, joined
from onp.defend.evaluation import Evaluation
from onp.detect.bank import Bank
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Case:
    """A suspicious network and images to judge it by."""

    victim: Victim
    clean: Splits
    known_trigger: Bank | None = None  #: None when there is none, and triggers must be inverted
    evaluation: Evaluation = field(default_factory=Evaluation)  #: for measuring only
    doubts: tuple[str, ...] = ()  #: sentences on what looks like a mistake and was stated all the same

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label."""
        return self.clean.build.class_names

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.clean.build.name(label)

    @property
    def searched(self) -> ImageSet:
        """The build and score images: all clean images but those kept for the report."""
        return joined(self.clean.build, self.clean.score)

    @property
    def images(self) -> ImageSet:
        """All clean images."""
        return joined(self.searched, self.clean.holdout)

    def identity(self) -> dict[str, str | None]:
        """SHA-256 of the network's tensors, of the clean images with their labels and of the known trigger's images.

        The same for two runs only where one can continue the other.
        """
        images, trigger = self.images, None
        if self.known_trigger is not None:
            (batch,) = self.known_trigger.batches(self.victim, self.known_trigger.images(self.clean).score)
            trigger = _sha256(batch.images)
        return {
            "model": _sha256(*self.victim.model.state_dict().values()),
            "data": _sha256(images.images, images.labels),
            "trigger": trigger,
        }


def _sha256(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
