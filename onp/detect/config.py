"""Settings of detection and trigger inversion, and what one pass of either is run with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onp.engine.metrics import VALUES_AT_ONCE
from onp.resume import Store


@dataclass(frozen=True)
class InversionConfig:
    """How the triggers of a family are inverted."""

    steps: int = 60  #: Adam steps
    images: int = 16  #: images a class and step
    min_confidence: float = 0.9  #: running mean probability of the target from which a trigger counts as working
    bn_match_weight: float = 2.0  #: of the BN-shift match against the cross-entropy, in nats; 0: triggers are not matched


@dataclass(frozen=True)
class DetectConfig:
    """How classes are scored and how the trigger bank of a target class is built."""

    scan: InversionConfig = InversionConfig(steps=60, images=4)
    """For the classes that `classes_to_invert` chooses. The costs that the verdict was learned from were measured with twice as
    many images; on 80 networks of the zoo it is as good with these (docs/ablations.md)."""
    change_images: int = 32  #: images that each random change is put on; half as many are put under each grating
    passes: int = 2  #: over the classes, at most; see `onp.detect.targets`
    refine: InversionConfig = InversionConfig(steps=60, images=16, min_confidence=0.97)  #: for the target class alone
    starts: int = 4  #: triggers of a family for the target class; a mask that stops only one of them is easily found
    minimum_success: float = 0.6  #: share of images not used for inversion that a trigger must lead to the target


class ProgressCallback(Protocol):
    """Counts steps as done, as `onp.progress.Stage.advance` does; `known`: an earlier run did them."""

    def __call__(self, steps: int = 1, *, known: bool = False) -> None: ...


def no_progress(steps: int = 1, *, known: bool = False) -> None:
    """A `ProgressCallback` that shows nothing."""


@dataclass(frozen=True, eq=False)
class DetectRun:
    """What one pass over the classes, or one trigger bank, is made with."""

    config: DetectConfig = DetectConfig()
    seed: int = 0
    progress: ProgressCallback = no_progress
    store: Store | None = None  #: where inverted triggers are kept, to resume a run
    values_at_once: int = VALUES_AT_ONCE  #: pixel values in a batch; changes memory and speed only
