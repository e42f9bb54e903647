"""The parts of a report as values; the name of a field is its key in report.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onp.defend.report.audit import Figures

Task = Literal["defend", "scan", "verify"]
"""What was asked: verdict and repair, the verdict alone, or whether a repaired network still obeys triggers."""


@dataclass(frozen=True)
class FileDigest:
    """What ties a report to a file or a folder."""

    role: str  #: "model", "data", "config", "trigger", "mask", "repaired model" and the like
    name: str  #: without the folders it lies in
    sha256: str  #: of the content; of a folder: of the sorted lines "SHA256  RELATIVE/NAME" of its files
    bytes: int


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from."""

    created: str  #: UTC, ISO 8601
    onp: str  #: version of this package
    learned: dict[str, str]  #: what the verdict learned from, by file of `onp.pretrained`: version or SHA-256
    inputs: tuple[FileDigest, ...]  #: files that were given; empty for values in memory
    outputs: tuple[FileDigest, ...]  #: files that were written beside the report


@dataclass(frozen=True)
class PrunableLayer:
    """A layer whose units can be pruned."""

    name: str
    units: int


@dataclass(frozen=True)
class SkippedLayer:
    """A layer whose units cannot be pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ModelSection:
    """The network that was given."""

    path: str | None  #: of the checkpoint; None for a live network
    arch: str | None
    input_shape: tuple[int, ...]  #: channels, height, width of an image
    classes: int
    layers: tuple[PrunableLayer, ...]  #: from input to logits
    not_prunable: tuple[SkippedLayer, ...]


@dataclass(frozen=True)
class DataSection:
    """The images that were given."""

    path: str | None  #: of the clean images; None for images in memory
    images: int  #: clean ones; `build`, `score` and `holdout` count their disjoint parts
    build: int  #: for inverting triggers
    score: int  #: for selecting triggers and masks
    holdout: int  #: for the figures of the report only
    normalisation: str
    evaluation: str | None  #: path of the images of --eval-data


@dataclass(frozen=True)
class SurrogateSection:
    """Inverted triggers of one family that the search had to stop."""

    family: str
    target: int
    weight: float  #: share of the family in the surrogate ASR that the search lowers
    anomaly_index: float  #: of the target class in this family
    success: float  #: ASR on images that the triggers were not inverted on
    cost: float  #: of the cheapest trigger, in the unit of the family
    bn_match: float | None  #: cosine with the BN-statistics residual; None where that says nothing


@dataclass(frozen=True)
class DetectionSection:
    """How probable a backdoor is, and what that rests on; see `onp.detect.targets`."""

    probability: float  #: that the network has a backdoor, of all passes together
    per_class: tuple[float, ...]  #: that the class is the target of one; the sum over the classes is about `probability`
    class_names: tuple[str, ...]
    evidence: dict[str, tuple[float, ...]]  #: detector -> per class: what it adds to the log odds
    anomaly_index: dict[str, tuple[float, ...]]  #: detector -> per class, in robust standard deviations, of the last pass
    backdoor_from: float  #: probability from which a backdoor is evident
    none_below: float  #: probability below which there is no evidence of one; between the two a scan is inconclusive
    passes: tuple[tuple[float, ...], ...]  #: probability per class after each pass of detection, one or two
    after_repairs: tuple[tuple[float, ...], ...]
    """Probability per class on the pruned network, one tuple for each repair that left classes open."""
    surrogates: tuple[SurrogateSection, ...]

    @property
    def ranking(self) -> tuple[int, ...]:
        """All classes, the most probable target first."""
        return tuple(sorted(range(len(self.per_class)), key=lambda k: -self.per_class[k]))

    def evidence_of(self, k: int) -> dict[str, float]:
        """What each detector adds to the log odds of a class."""
        return {name: values[k] for name, values in self.evidence.items()}


@dataclass(frozen=True)
class BudgetSection:
    """What the run took."""

    evaluations: int  #: masks scored
    masks_per_second: float
    wall_seconds: float  #: of all stages, those of a resumed run included


@dataclass(frozen=True)
class ReferenceSection:
    """What clean networks show for triggers inverted as those of the report; see `onp.defend.clean_reference`."""

    networks: int  #: clean networks that were measured
    version: str  #: of the measurement
    shares: dict[
        str, float | None
    ]  #: by surrogate, named as in `asr_surrogate`: ASR that one clean network in 20 exceeds; None where it was not measured


@dataclass(frozen=True)
class Verification:
    """The mask beside a repaired checkpoint against its weights, with `onp verify`; each field gives units by layer."""

    pruned: dict[str, list[int]]  #: units that are pruned in the weights
    mask: dict[str, list[int]] | None  #: units that the mask names; None where there is no mask
    not_zero: dict[str, list[int]]  #: units that the mask names and that are not pruned in the weights
    not_named: dict[str, list[int]]  #: units that are pruned in the weights and that the mask does not name


@dataclass(frozen=True, eq=False)
class Tuned:
    """The network after `--tune`, which trains it once it is pruned."""

    method: str
    figures: Figures
    der: float | None
