"""What every peer is told beside the victim and the clean images."""

from __future__ import annotations

from dataclasses import dataclass

from onp.data import ImageSet, joined, split
from onp.mask import Mask


@dataclass(frozen=True)
class PeerConfig:
    """Settings that all peers share; what is a method's own stands in its file, as published."""

    max_acc_drop: float = 0.01  #: accuracy that a pruning may cost on the held-out images, as a share of them
    seed: int = 0
    passes: int = 200_000  #: images that each stage of a method may send forward and backward; longer recipes are cut short
    preset: str = "default"  #: search baselines only: the preset of `onp.defend` whose bank and evaluations they get
    quiet: bool = True  #: no progress
    pruned: Mask | None = None  #: of a pruned victim that is trained on (`onp.tune.TUNES`): its pruned units stay at zero

    def steps(self, published: int, images: int) -> int:
        """The published number of steps, or as many as `passes` allows where each step sends `images` images."""
        return max(1, min(published, self.passes // max(1, images)))


def divide(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """60 % of the clean images to fit on, and the other 40 % that only a threshold may see; the split of `onp.defend`."""
    parts = split(clean, seed)
    return joined(parts.build, parts.score), parts.holdout
