"""The attack as the late batch norms remember it: what its trigger did to the features of the training images.

What a norm remembers beyond any mix of the clean images' classes (`detect.bn_statistics`) is, late in a network, the share of
poisoned images times the trigger's own change of the features. So a fitted trigger can be held against it: one that leads to the
target as the attacker's does changes the features the same way, one that only exploits how near the classes lie does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onp.detect.bn_statistics import (
    CHANNELS_PER_CLASS,
    LATE,
    against_classes,
    argument,
    channel_means,
    cropped,
    norms_of,
    pooled,
)
from onp.engine.differentiable import Forward, forward_of
from onp.engine.metrics import at_once
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class _Norm:
    """What one norm remembers, in its running standard deviations, on the victim's device, float32."""

    node: str  #: the node it reads
    spread: Tensor  #: [C]
    explained: Tensor  #: [C, K], orthonormal: what a mix of classes and random crops can do
    shift: Tensor  #: [C], of length 1 and at right angles to `explained`
    reliability: float  #: 0 to 1: how far two halves of the clean images agree on `shift`


@dataclass(frozen=True, eq=False)
class Recall:
    """What the late norms of a victim remember, to hold triggers against; see `recall`."""

    forward: Forward  #: of the victim, with what the norms read
    norms: tuple[_Norm, ...]

    @property
    def reliability(self) -> float:
        """How far what is remembered may be believed, 0 to 1: the mean over the norms."""
        return sum(norm.reliability for norm in self.norms) / len(self.norms)

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of images float32 `[N, C, H, W]` in [0, 1], and what each norm reads of them, mean over positions and in
        its standard deviations, float32 `[N, channels]`; differentiable in the images."""
        logits, kept = self.forward(images)
        return logits, [pooled(kept[norm.node]) / norm.spread for norm in self.norms]

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Tensor]:
        """The second of `run`, for any number of images."""
        parts = [self.run(part)[1] for part in images.split(at_once(images, 250))]
        return [torch.cat(same) for same in zip(*parts, strict=True)]

    def match(self, changes: list[Tensor]) -> Tensor:
        """The cosine between what is remembered and what triggers change, float32 `[G]`: mean over the norms, weighted by their
        reliability. `changes`: per norm, the mean change `[G, channels]` of what `run` gives.
        """
        cosines, weights = [], torch.tensor([norm.reliability for norm in self.norms], device=changes[0].device)
        for norm, change in zip(self.norms, changes, strict=True):
            beyond = change - (change @ norm.explained) @ norm.explained.T
            cosines.append(F.cosine_similarity(beyond, norm.shift[None], dim=1))
        return torch.stack(cosines, 1) @ (weights / weights.sum())

    def explained_by(self, images: Tensor, triggered: Tensor) -> float:
        """`match` of what turned `images` into `triggered`, float32 `[N, C, H, W]` in [0, 1] both."""
        pairs = zip(self.read(triggered), self.read(images), strict=True)
        return float(self.match([(after.mean(0) - before.mean(0))[None] for after, before in pairs]))


def recall(victim: Victim, images: Tensor, labels: Tensor) -> Recall | None:
    """What the last `LATE` of the norms remember beyond clean images float32 `[N, C, H, W]` in [0, 1] with labels int64 `[N]`.

    Random crops, with which networks are trained, are taken out like the mix of classes. A norm counts as far as two halves of
    the images agree (Spearman-Brown): on a clean network they hardly do. None where no norm remembers anything.
    """
    norms = norms_of(victim.program)
    norms = norms[-max(1, round(LATE * len(norms))) :] if norms else []
    plain, moved = channel_means(victim, norms, images), channel_means(victim, norms, cropped(images))
    labels = labels.cpu()
    half = _half(labels)
    found = []
    for norm in norms:
        means, change = plain[norm.name], moved[norm.name] - plain[norm.name]
        if means.shape[1] < CHANNELS_PER_CLASS * len(labels.unique()) or min(int(half.sum()), int((~half).sum())) < 1:
            continue
        shift, explained, spread = _beyond(victim, norm, means, change, labels)
        one, other = (_beyond(victim, norm, means[part], change[part], labels[part])[0] for part in (half, ~half))
        agreed = float(F.cosine_similarity(one, other, dim=0).clamp_min(0))
        if agreed > 0 and float(shift.norm()) > 0:
            here = [each.to(victim.device, torch.float32) for each in (spread, explained, shift / shift.norm())]
            found.append(_Norm(argument(norm, 0).name, here[0], here[1], here[2], 2 * agreed / (1 + agreed)))
    return Recall(forward_of(victim, [norm.node for norm in found]), tuple(found)) if found else None


def _beyond(victim: Victim, norm: fx.Node, means: Tensor, change: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `norm` remembers beyond what is explained `[C]`, an orthonormal basis of that `[C, K]`, and the unit `[C]`."""
    shift, span, spread = against_classes(victim, norm, means, labels)
    directions = torch.column_stack((span, change.mean(0) / spread))
    basis, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[:, sizes > 1e-8 * sizes[0].clamp_min(1e-300)]
    return shift - basis @ (basis.T @ shift), basis, spread


def _half(labels: Tensor) -> Tensor:
    """bool `[N]`: every second image of each class."""
    half = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        half[(labels == k).nonzero()[::2, 0]] = True
    return half
