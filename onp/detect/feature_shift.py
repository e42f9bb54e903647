"""The smallest change of early features that leads images of other classes to each class, the same for all images.

After the first layers a trigger that is hard to invert in the image is a change of few strong features (a warp: of edges; a
field without fine detail: of one channel's mean), so that a backdoor's target is reached by a smaller change than others.
The features count in their own standard deviations, whatever norms the network has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from onp.data.images import ImageSet, Splits
from onp.detect.config import DetectRun, InversionConfig
from onp.detect.inversion import InversionTask, invert, success_rate
from onp.detect.trigger_families import Family
from onp.engine.differentiable import Halves, halves
from onp.engine.metrics import at_once
from onp.model.victim import Victim

EARLY_FEATURES = "early_features"
DEPTH = 0.15  # share of the layers that lie before the features
LEAST_STD = 1e-3  # of the mean over channels: a channel that varies less counts as that much


class FeatureShift(Family):
    """The same features added to those of every image; cost: root mean square, in standard deviations."""

    name = EARLY_FEATURES
    parameter_names = ("shift",)
    lr = 0.05
    weight = 10.0

    def start(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.zeros(count, *shape),)

    def apply(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        return images + parameters[0][:, None]

    def cost(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return (parameters[0].square().mean((1, 2, 3)) + 1e-8).sqrt()

    def stronger(self, parameters: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        return (parameters[0] * factor.view(-1, 1, 1, 1),)


@dataclass(frozen=True, eq=False)
class EarlyFeatures:
    """A network's early features, in standard deviations of each channel, as images `[N, C, H, W]`."""

    cut: Halves
    std: Tensor  #: float32 `[1, C, 1, 1]`

    @staticmethod
    def of(victim: Victim, images: ImageSet) -> EarlyFeatures | None:
        """Measure the deviations on some images; None where no single value leads from the early layers to the logits."""
        cut = halves(victim, DEPTH)
        if cut is None:
            return None
        std = _as_images(_read(cut, images, victim)).std((0, 2, 3), keepdim=True)
        return EarlyFeatures(cut, std.clamp_min(LEAST_STD * float(std.mean())))

    def read(self, images: ImageSet, victim: Victim) -> Tensor:
        return _as_images(_read(self.cut, images, victim)) / self.std

    def logits(self, features: Tensor) -> Tensor:
        values = features * self.std
        if len(self.cut.shape) == 3:
            return self.cut.second(values.contiguous(memory_format=torch.channels_last))
        return self.cut.second(values[..., 0].transpose(1, 2) if len(self.cut.shape) == 2 else values[:, :, 0, 0])


def early_feature_costs(
    victim: Victim, clean: Splits, classes: tuple[int, ...], config: InversionConfig, run: DetectRun
) -> tuple[Tensor, list[float]] | None:
    """Invert a shift for each class, as `onp.detect.inversion` inverts triggers.

    Args:
        victim: the network.
        clean: shifts are fitted on the build images, their success is measured on the score images.
        classes: that shifts are inverted for.
        config: how long and how hard to try.
        run: seed, progress and resume store.

    Returns:
        The cost of each shift, float32 `[classes]`, and its success rates; None where the network has no early features.
    """
    early = EarlyFeatures.of(victim, clean.build)
    if early is None:
        return None
    task = InversionTask((early.logits,), early.read(clean.build, victim), clean.build.labels.to(victim.device), classes)
    found = invert(FeatureShift(), task, config, run)
    features, labels = early.read(clean.score, victim), clean.score.labels.to(victim.device)
    rates = [success_rate(early.logits, partial(found.apply, row=row), features, labels, k) for row, k in enumerate(classes)]
    return found.cost.cpu(), rates


@torch.no_grad()
def _read(cut: Halves, images: ImageSet, victim: Victim) -> Tensor:
    pixels = images.pixels().to(victim.device)
    return torch.cat([cut.first(part) for part in pixels.split(at_once(pixels, 250))])


def _as_images(features: Tensor) -> Tensor:
    """`[N, C, H, W]` of these, of tokens `[N, T, C]` or of vectors `[N, C]`."""
    if features.dim() == 4:
        return features
    return features.transpose(1, 2)[..., None] if features.dim() == 3 else features[:, :, None, None]
