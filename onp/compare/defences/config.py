"""What every peer is told beside the victim and the clean images."""

from __future__ import annotations

from dataclasses import dataclass

from onp.data.images import ImageSet, joined, split
from onp.model.tuning.config import TuneConfig


@dataclass(frozen=True)
class DefenceConfig(TuneConfig):
    """Settings that all peers share; what is a method's own stands in its file, as published."""

    max_acc_drop: float = 0.01  #: accuracy that a pruning may cost on the held-out images, as a share of them
    preset: str = "default"  #: search baselines only: the preset of `onp.defend` whose bank and evaluations they get


def divide(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """60 % of the clean images to fit on, and the other 40 % that only a threshold may see; the split of `onp.defend`."""
    parts = split(clean, seed)
    return joined(parts.build, parts.score), parts.holdout
