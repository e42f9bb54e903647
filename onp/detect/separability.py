"""How far the features that lead images to a class are from those of the class's own images.

A network that learned a backdoor keeps triggered images apart from the target's own images in its last features (latent
separability: Tang et al. 2021, "Demon in the Variant", https://arxiv.org/abs/1908.00686; Qi et al. 2023, "Revisiting the
Assumption of Latent Separability for Backdoor Defenses", https://openreview.net/forum?id=_wSHsgrVali). There the triggers are
the attacker's. Those inverted from clean images show it too, and so do random changes of images (`onp.detect.changes`): what
leads a network to a class without a backdoor borrows the features of the class, what leads to a backdoor's target uses features
of its own, in part at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.detect.head import Head
from onp.detect.last_features import Reader, reader_of
from onp.model.victim import Victim

SEPARABILITY = "separability"
IMAGES = 100  # of other classes, that a trigger is put on
LEAST_REACHED = 0.2  # mean probability of the class from which a trigger counts as leading there
LEAST_OWN = 8  # images of the class; the mean of three had a cosine of 0.74 in a network without a backdoor
SEPARATED = ("patch", "perturbation", "low_frequency", "spectrum")
"""Families whose triggers are compared: all but warps, which lead few images to a class of a clean network."""

Trigger = Callable[[Tensor], Tensor]
"""Images float32 `[N, C, H, W]` in [0, 1] to triggered images."""


@dataclass(frozen=True, eq=False)
class Latent:
    """The last features of some clean images."""

    reader: Reader
    head: Head
    pixels: Tensor  #: float32 `[N, C, H, W]` in [0, 1]
    labels: Tensor  #: int64 `[N]`, on the CPU
    features: Tensor  #: float32 `[N, D]`, on the CPU

    @staticmethod
    def of(victim: Victim, images: ImageSet) -> Latent | None:
        """Read them; None where the last layer is not linear on a vector."""
        reader = reader_of(victim)
        if reader.head is None:
            return None
        pixels = images.pixels().to(victim.device)
        return Latent(reader, reader.head, pixels, images.labels, reader.features(pixels))

    @cached_property
    def _natural(self) -> Tensor:
        """What tells the images of each class from others, float32 `[classes, D]`, see `similarities`; nan for few images."""
        rows = []
        for k in range(len(self.head.weight)):
            own = self.labels == k
            told = self.features[own].mean(0) - self.features[~own].mean(0)
            rows.append(told if int(own.sum()) >= LEAST_OWN else torch.full_like(told, torch.nan))
        return torch.stack(rows) * self._weight

    @cached_property
    def _weight(self) -> Tensor:
        return self.head.weight - self.head.weight.mean(0)

    def similarities(self, added: Tensor) -> Tensor:
        """How much a change of the features is what tells the images of a class from others.

        Args:
            added: float32 `[classes, D]`, the mean change of the features of images that are led to each class.

        Returns:
            float32 `[classes]`: the cosine between the change and the difference of mean features, each feature in what it adds
            to the logit of the class beyond the mean logit; nan for a class with fewer than `LEAST_OWN` images.
        """
        return torch.cosine_similarity(added * self._weight, self._natural, dim=1)

    def similarity(self, trigger: Trigger, k: int) -> float:
        """The same of a trigger and the class k that it leads images to; nan where it does not."""
        others = (self.labels != k).nonzero()[:, 0]
        others = others[:: max(1, len(others) // IMAGES)][:IMAGES]
        if not len(others):
            return float("nan")
        triggered = self.reader.features(trigger(self.pixels[others]))
        reached = self.head.logits(triggered).softmax(1)[:, k]
        if float(reached.mean()) < LEAST_REACHED:
            return float("nan")
        added = ((triggered - self.features[others]) * reached[:, None]).sum(0) / reached.sum()
        return float(self.similarities(added.expand(len(self.head.weight), -1))[k])


def separability_costs(similarities: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean similarity of each class, low where triggers use features of their own.

    Args:
        similarities: per trigger family, of each class; nan where the family has nothing to say.

    Example:
        >>> separability_costs([[0.9, 0.2], [float("nan"), 0.4]])
        (0.9, 0.3)
    """
    return tuple(torch.tensor(similarities, dtype=torch.float64).nanmean(0).tolist())
