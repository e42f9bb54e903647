"""BN-shift match: whether a trigger changes the late layers' features as the triggers of the training images did.

Late in a network the BN-statistics residual (`onp.detect.bn_statistics`) is the share of poisoned images times what the
attacker's trigger changes in the features. A trigger that leads to the target as the attacker's does changes them in the same
direction; one that only exploits how near two classes lie does not. The match is the cosine between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.detect.bn_statistics import CHANNELS_PER_CLASS, BnStatistics, NormStatistics, pooled
from onp.engine.differentiable import Forward, forward_of
from onp.engine.metrics import at_once
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class NormResidual:
    """The residual of one late norm, in its running standard deviations, on the victim's device, float32."""

    source: str  #: the node it reads
    std: Tensor  #: `[C]`, running standard deviations
    explained: Tensor  #: `[C, K]`, orthonormal: what a class prior and random crops can explain
    direction: Tensor  #: `[C]`, of length 1 and orthogonal to `explained`
    reliability: float  #: 0 to 1: split-half reliability of the direction over the clean images (Spearman-Brown)


@dataclass(frozen=True, eq=False)
class BnMatch:
    """The residuals that triggers are compared with; made by `bn_match`."""

    forward: Forward  #: of the victim, with what the norms read
    norms: tuple[NormResidual, ...]
    reliability: float  #: 0 to 1: mean over the norms

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and what each norm reads, mean over positions; differentiable in the images.

        Args:
            images: float32 `[N, C, H, W]` in [0, 1].

        Returns:
            float32 `[N, classes]`, and per norm `[N, channels]` in running standard deviations.
        """
        logits, values = self.forward(images)
        return logits, [pooled(values[norm.source]) / norm.std for norm in self.norms]

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Tensor]:
        """The second of `features`, for any number of images."""
        parts = [self.features(part)[1] for part in images.split(at_once(images, 250))]
        return [torch.cat(same) for same in zip(*parts, strict=True)]

    def match(self, changes: list[Tensor]) -> Tensor:
        """Cosine between the residual and what triggers change, mean over the norms weighted by their reliability.

        Args:
            changes: per norm, the mean change `[G, channels]` of `features` by G triggers.

        Returns:
            float32 `[G]`, -1 to 1.
        """
        cosines, weights = [], torch.tensor([norm.reliability for norm in self.norms], device=changes[0].device)
        for norm, change in zip(self.norms, changes, strict=True):
            unexplained = change - (change @ norm.explained) @ norm.explained.T
            cosines.append(F.cosine_similarity(unexplained, norm.direction[None], dim=1))
        return torch.stack(cosines, 1) @ (weights / weights.sum())

    def of_images(self, images: Tensor, triggered: Tensor) -> float:
        """`match` of the trigger that turned `images` into `triggered`, both float32 `[N, C, H, W]` in [0, 1]."""
        pairs = zip(self.read(triggered), self.read(images), strict=True)
        return float(self.match([(after.mean(0) - before.mean(0))[None] for after, before in pairs]))


def bn_match(victim: Victim, bn: BnStatistics) -> BnMatch | None:
    """The residuals of the late norms, with the direction of random crops taken out like the class means.

    A norm counts as far as two halves of the clean images agree on its residual; on a clean network they hardly do.

    Args:
        victim: the network that `bn` was measured on.
        bn: its BN statistics.

    Returns:
        None where the halves agree on no norm's residual, or no late norm has channels enough.
    """
    half = _half(bn.labels)
    if not 0 < int(half.sum()) < len(half):
        return None
    norms = []
    for norm in bn.late:
        if norm.clean.shape[1] < CHANNELS_PER_CLASS * len(bn.labels.unique()):
            continue
        residual, explained = _residual(norm, bn.labels)
        one, other = (_residual(norm, bn.labels, chosen)[0] for chosen in (half, ~half))
        agreement = float(F.cosine_similarity(one, other, dim=0).clamp_min(0))
        if agreement > 0 and float(residual.norm()) > 0:
            values = (norm.std, explained, residual / residual.norm())
            std, basis, direction = (value.to(victim.device, torch.float32) for value in values)
            norms.append(NormResidual(norm.source, std, basis, direction, 2 * agreement / (1 + agreement)))
    if not norms:
        return None
    reliability = sum(norm.reliability for norm in norms) / len(norms)
    return BnMatch(forward_of(victim, [norm.source for norm in norms]), tuple(norms), reliability)


def _residual(norm: NormStatistics, labels: Tensor, chosen: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
    """The shift outside what is explained `[C]`, and an orthonormal basis of what is `[C, K]`, on the images `chosen`."""
    directions = torch.column_stack((norm.class_directions(labels, chosen), norm.crop_direction(chosen)))
    basis, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[:, sizes > 1e-8 * sizes[0].clamp_min(1e-300)]
    shift = norm.shift(chosen)
    return shift - basis @ (basis.T @ shift), basis


def _half(labels: Tensor) -> Tensor:
    """bool `[N]`: every second image of each class."""
    half = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        half[(labels == k).nonzero()[::2, 0]] = True
    return half
