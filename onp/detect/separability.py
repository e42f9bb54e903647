"""How far the features that inverted triggers add are from those of the class's own images.

A network that learned a backdoor keeps triggered images apart from the target's own images in its last features (latent
separability: Tang et al. 2021, "Demon in the Variant", https://arxiv.org/abs/1908.00686; Qi et al. 2023, "Revisiting the
Assumption of Latent Separability for Backdoor Defenses", https://openreview.net/forum?id=_wSHsgrVali). There the triggers are
the attacker's. Those inverted from clean images show it too: a trigger that leads to a class without a backdoor borrows the
features of the class, one that leads to a backdoor's target uses features of its own, in part at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
    images: ImageSet  #: N images
    features: Tensor  #: float32 `[N, D]`, on the CPU

    @staticmethod
    def of(victim: Victim, images: ImageSet) -> Latent | None:
        """Read them; None where the last layer is not linear on a vector."""
        reader = reader_of(victim)
        if reader.head is None:
            return None
        return Latent(reader, reader.head, images, reader.features(images.pixels()))

    def similarity(self, trigger: Trigger, k: int) -> float:
        """How much what a trigger adds to the features is what tells the images of class k from others.

        Args:
            trigger: leads images to the class.
            k: the class.

        Returns:
            The cosine between the two differences of mean features, each feature in what it adds to the logit of the class
            beyond the mean logit; nan where the trigger does not lead there or fewer than `LEAST_OWN` images are of the class.
        """
        others = self.images.labels != k
        own = self.features[~others]
        places = others.nonzero()[:, 0]
        places = places[:: max(1, len(places) // IMAGES)][:IMAGES]
        if not len(places) or len(own) < LEAST_OWN:
            return float("nan")
        triggered = self.reader.features(trigger(self.images.subset(places).pixels().to(self.reader.device)))
        reached = self.head.logits(triggered).softmax(1)[:, k]
        if float(reached.mean()) < LEAST_REACHED:
            return float("nan")
        added = ((triggered - self.features[places]) * reached[:, None]).sum(0) / reached.sum()
        natural = own.mean(0) - self.features[others].mean(0)
        weight = self.head.weight[k] - self.head.weight.mean(0)
        return float(torch.cosine_similarity(added * weight, natural * weight, dim=0))


def separability_costs(similarities: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean similarity of each class, low where triggers use features of their own.

    Args:
        similarities: per trigger family, of each class; nan where the family has nothing to say.

    Example:
        >>> separability_costs([[0.9, 0.2], [float("nan"), 0.4]])
        (0.9, 0.3)
    """
    return tuple(torch.tensor(similarities, dtype=torch.float64).nanmean(0).tolist())


def discount_costly_classes(log_costs: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The log costs of all detectors, `SEPARABILITY` as it counts.

    A trigger that changes much of an image leads away from what the network was trained on, wherever it leads to. A class whose
    triggers cost more than the median class's (by the median of the `SEPARATED` families) therefore counts as no less similar
    than the median of the others.

    Example:
        >>> costs = dict.fromkeys(SEPARATED, (1.0, 2.0, 3.0))
        >>> discount_costly_classes(costs | {SEPARABILITY: (0.8, 0.9, 0.1)})[SEPARABILITY]
        (0.8, 0.9, 0.85)
    """
    if SEPARABILITY not in log_costs or not all(name in log_costs for name in SEPARATED):
        return dict(log_costs)
    similarity = np.asarray(log_costs[SEPARABILITY])
    costs = np.array([log_costs[name] for name in SEPARATED])
    measured = np.isfinite(costs).all(0)
    excess = np.full(len(similarity), np.inf)
    excess[measured] = np.median(costs[:, measured] - np.median(costs[:, measured], 1, keepdims=True), 0)
    cheap = similarity[(excess <= 0) & np.isfinite(similarity)]
    usual = float(np.median(cheap)) if len(cheap) else 1.0
    counted = np.where(excess > 0, np.fmax(similarity, usual), similarity)
    return dict(log_costs) | {SEPARABILITY: tuple(np.where(np.isnan(similarity), np.nan, counted).tolist())}
