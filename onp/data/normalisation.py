"""How the pixels of a network's images are normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.errors import InputError

# Per-channel mean and standard deviation of the training pixels in [0, 1], as commonly published:
# imagenet: torchvision's model documentation; cifar10, cifar100, mnist and fashion-mnist: computed from the
# training sets (the figures most training scripts carry); gtsrb: https://github.com/poojahira/gtsrb-pytorch.
# One value stands for every channel.
PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gtsrb": ((0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}


@dataclass(frozen=True)
class Normalisation:
    """Per-channel `(x - mean) / std`; a single value stands for every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"The normalisation has {len(self.mean)} means and {len(self.std)} standard deviations; "
                "give one of each per channel."
            )
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            raise InputError(f"The normalisation {self} needs finite means and standard deviations above 0.")

    def __call__(self, images01: Tensor) -> Tensor:
        """Normalise float images `[N, C, H, W]` in [0, 1] to float32 of the same shape.

        Raises InputError when the number of channels is another than that of the normalisation.
        """
        channels = images01.shape[1]
        if len(self.mean) not in (1, channels):
            raise InputError(
                f"The normalisation has {len(self.mean)} channels but the images have {channels}; "
                "choose the one the model was trained with."
            )
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images01.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=images01.device).view(1, -1, 1, 1)
        return (images01.float() - mean) / std

    def __str__(self) -> str:
        """The form `parse` reads back: `mean,.../std,...`."""
        return ",".join(map(repr, self.mean)) + "/" + ",".join(map(repr, self.std))

    @staticmethod
    def parse(text: str) -> Normalisation:
        """Read a preset's name or `mean,.../std,...` (in units of [0, 1] pixels); raises InputError otherwise."""
        if text.lower() in PRESETS:
            return Normalisation(*PRESETS[text.lower()])
        means, _, stds = text.partition("/")
        try:
            mean = tuple(float(value) for value in means.split(","))
            std = tuple(float(value) for value in stds.split(","))
        except ValueError:
            raise InputError(
                f"The normalisation {text!r} is neither one of {', '.join(PRESETS)} nor MEAN/STD "
                "such as 0.49,0.48,0.45/0.25,0.24,0.26."
            ) from None
        if max(mean) > 1:
            raise InputError(f"The means of the normalisation {text!r} are of pixels up to 255; divide both sides by 255.")
        return Normalisation(mean, std)
