"""What every baseline defence is given beside the victim and the clean images."""

from __future__ import annotations

from dataclasses import dataclass

from onp.data.images import ImageSet, joined, split
from onp.model.tuning.config import TuneConfig


@dataclass(frozen=True)
class DefenceConfig(TuneConfig):
    """Settings of training, and the accuracy budget; what is a method's own stands in its file, as published."""

    max_acc_drop: float = 0.01  #: accuracy that a pruning may cost on the held-out images, as a share of them


def fit_and_held_out(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """60 % of the clean images to fit on, and the other 40 % that only a threshold may see; the split of `onp.defend`."""
    parts = split(clean, seed)
    return joined(parts.build, parts.score), parts.holdout
