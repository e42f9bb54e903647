"""The settings that all tuning methods share."""

from __future__ import annotations

from dataclasses import dataclass

from onp.model.mask import Mask


@dataclass(frozen=True)
class TuneConfig:
    """Settings that all tuning methods share; what is a method's own stands in its file, as published."""

    seed: int = 0
    passes: int = 200_000  #: images that each stage of a method may send forward and backward; longer recipes are cut short
    quiet: bool = True  #: no progress
    pruned: Mask | None = None  #: of a pruned victim: its pruned units stay at zero

    def steps(self, published: int, images: int) -> int:
        """The published number of steps, or as many as `passes` allows where each step sends `images` images."""
        return max(1, min(published, self.passes // max(1, images)))
