"""From the scores of all detectors to probabilities: of each class that it is a backdoor's target, and of the network.

A conditional logit with an outside option (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"): every
class has a score, the sum of what its detectors add; the network without a backdoor has the score 0. What a detector has to say
is a piecewise linear function of the class's anomaly index and rises with it; it was learned on networks of which it is known
whether they have a backdoor (`python -m onp.zoo learn`, docs/detection.md). What inverted triggers cost and where gratings lead
means the same in every network: there it is the geometric mean of that function and of another one, of the cost itself, so that
only a class counts that is cheap among the classes of its network and among those of other networks. Detectors of one kind see
much the same, so what they add together is the Euclidean norm of what each has to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from onp.detect.anomaly import DetectionScores
from onp.detect.class_features import FEATURES, INDEX, Array, class_features
from onp.detect.gratings import GRATINGS
from onp.errors import InputError

BACKDOOR, INCONCLUSIVE, NO_EVIDENCE = "backdoor", "inconclusive", "no-evidence"
BATCH_NORMS, NO_BATCH_NORMS = "batch_norms", "no_batch_norms"
GROUPS = (BATCH_NORMS, NO_BATCH_NORMS)
"""Of networks: whether statistics of batch norms have a say. Each has a constant of its own."""
KINDS = {
    "inversion": ("patch", "perturbation", "low_frequency", "warp", "spectrum", "early_features", "pgd"),
    "random changes": (
        *("probe_field", "probe_texture", "probe_warp", "probe_colours"),
        *(GRATINGS, "patch_sweep", "augmentation_bias"),
    ),
    "small patches": ("small_patch",),
    "last layer": ("head_mean", "head_positive", "head_skew", "latent"),
    "latent separability": ("separability",),
    "BN statistics": ("bn_shift", "prior_shift"),
}
"""Detectors that depend on each other; any other is a kind of its own."""
COMPARED = (*KINDS["inversion"], *KINDS["latent separability"], GRATINGS)
"""Detectors whose costs mean the same in every network: what triggers cost, and how many images a grating leads to a class."""
SUPPORT = (*KINDS["inversion"], GRATINGS)
"""Detectors without which latent separability means nothing."""
SIZES = range(16, 97)
"""Sides of images, in pixels, for which costs are compared between networks; the zoo has 28 and 32."""
USUAL_CLASSES = 10
LIMIT = 2**20  #: bytes of the file that are read

Points = tuple[tuple[float, float], ...]
"""A piecewise linear function, by its corners; constant outside of them."""


@dataclass(frozen=True)
class Context:
    """What is known of a network beside the scores of its classes."""

    classes: int
    images: int  #: clean images that the detectors had
    batch_norms: bool  #: it has batch norms, and their statistics have a say
    pruned: bool = False  #: units are pruned already
    comparable: bool = True  #: its images have `SIZES`, so that `COMPARED` costs mean what they do elsewhere

    @property
    def group(self) -> str:
        """One of `GROUPS`."""
        return BATCH_NORMS if self.batch_norms else NO_BATCH_NORMS


@dataclass(frozen=True)
class DetectorTerm:
    """What one detector has to say of a class, 0 or more: what it would add to the log odds by itself."""

    points: dict[str, Points]  #: per feature of `onp.detect.class_features`: rises with the feature
    missing: float  #: of every class where the detector measured none of them

    def of(self, features: dict[str, Array], comparable: bool = True) -> Array:
        """The geometric mean over the features, `[classes]`; 0 for a class that was not measured among measured ones.

        Args:
            features: of `onp.detect.class_features`, each `[classes]`.
            comparable: see `Context.comparable`; where not, the anomaly index alone counts.
        """
        counted = {name: points for name, points in self.points.items() if comparable or name == INDEX}
        return rarity([heights(features[name], points) for name, points in counted.items()], self.missing)


@dataclass(frozen=True)
class GroupModel:
    """The functions of the networks of a group."""

    bias: float  #: log odds of a class to which no detector adds anything, among `USUAL_CLASSES` classes
    log_classes: float  #: added to it times log(classes / `USUAL_CLASSES`)
    terms: dict[str, DetectorTerm]  #: by detector


@dataclass(frozen=True)
class LearnedVerdict:
    """What was learned from the zoo; read with `learned_verdict`."""

    floors: dict[str, float]  #: per detector: the least spread among classes that counts, in the unit of its log costs
    groups: dict[str, GroupModel]  #: by name, see `GROUPS`
    pair: float  #: how much likelier two targets are than two independent backdoors would be
    backdoor_from: float  #: probability from which a network counts as backdoored
    none_below: float  #: probability below which it counts as one without evidence; between the two it is inconclusive
    version: str  #: date, and hash of what was learned

    def decision(self, backdoor: float) -> str:
        """`BACKDOOR`, `INCONCLUSIVE` or `NO_EVIDENCE`, of the probability that a network has a backdoor."""
        if backdoor >= self.backdoor_from:
            return BACKDOOR
        return INCONCLUSIVE if backdoor >= self.none_below else NO_EVIDENCE


@dataclass(frozen=True, eq=False)
class TargetProbabilities:
    """How probable a backdoor is, by class and in all; the prior is the share of the zoo that has one."""

    per_class: tuple[float, ...]  #: probability that the class is the target of a backdoor
    backdoor: float  #: probability that the network has a backdoor
    evidence: tuple[dict[str, float], ...]  #: per class: what each detector adds to its log odds
    log_odds: tuple[float, ...]  #: per class, against no backdoor, if no other class were a target

    @property
    def predicted_target(self) -> int:
        """The class with the highest probability."""
        return max(range(len(self.per_class)), key=self.per_class.__getitem__)


def target_probabilities(
    scores: DetectionScores, context: Context, verdict: LearnedVerdict | None = None
) -> TargetProbabilities:
    """Compute the probabilities of a network's classes.

    Args:
        scores: of all detectors; detectors that the verdict does not know add nothing. A detector that did not measure any
            class is absent or nan in every class, a class that a detector did not measure is nan.
        context: what is known of the network.
        verdict: what was learned; by default what is part of the package.
    """
    verdict = verdict or learned_verdict()
    model = verdict.groups[context.group]
    nats = {}
    for name, term in model.terms.items():
        costs = scores.log_costs.get(name, (math.nan,) * context.classes)
        nats[name] = term.of(class_features(costs, verdict.floors[name]), context.comparable)
    together = np.stack(list(nats.values()), -1) if nats else np.zeros((context.classes, 0))
    added = dict(zip(nats, added_by(together, list(nats)).T, strict=True))
    log_odds = model.bias + model.log_classes * math.log(context.classes / USUAL_CLASSES) + sum(added.values())
    log_odds = np.broadcast_to(log_odds, context.classes)
    per_class, backdoor = probabilities(log_odds, verdict.pair)
    evidence = tuple({name: float(values[k]) for name, values in added.items()} for k in range(context.classes))
    return TargetProbabilities(tuple(per_class.tolist()), backdoor, evidence, tuple(log_odds.tolist()))


def heights(values: Array, points: Points) -> Array:
    """A piecewise linear function of each value; nan where the value is."""
    corners, found = zip(*points, strict=True)
    return np.where(np.isnan(values), np.nan, np.interp(values, corners, found))


def rarity(of_features: Sequence[Array], missing: float) -> Array:
    """What a detector has to say, from what it says by each feature.

    Args:
        of_features: of each feature `[..., classes]`, 0 or more; nan of a class that was not measured.
        missing: of every class of a network in which none was measured.

    Returns:
        float64 `[..., classes]`: the geometric mean; 0 for a class that was not measured among measured ones.

    Example:
        >>> rarity([np.array([4.0, 0.0, np.nan]), np.array([1.0, 9.0, np.nan])], 0.5).tolist()
        [2.0, 0.0, 0.0]
    """
    mean = np.prod(of_features, 0) ** (1 / len(of_features))
    unmeasured = np.isnan(mean).all(-1, keepdims=True)
    return np.where(unmeasured, missing, np.nan_to_num(mean))


def kind_of(detector: str) -> str:
    """One of `KINDS`, or the detector's own name."""
    return next((kind for kind, names in KINDS.items() if detector in names), detector)


def added_by(nats: Array, detectors: Sequence[str]) -> Array:
    """What each detector adds to the log odds: its share of the norm over its kind, so that all shares sum to the norms.

    Where neither inverted triggers nor gratings lead to the class more easily than to others, it means nothing that what leads
    there has features that are none of the class's own: so latent separability says at most as much as the norm over those.

    Args:
        nats: what each detector has to say, 0 or more, `[..., detectors]`.
        detectors: their names.

    Returns:
        float64 of the same shape.

    Example:
        >>> added_by(np.array([3.0, 4.0, 2.0]), ["patch", "warp", "latent"]).round(2).tolist()
        [1.8, 3.2, 2.0]
    """
    kinds = [kind_of(name) for name in detectors]
    same = np.array([[one == other for other in kinds] for one in kinds], dtype=np.float64).reshape(len(kinds), len(kinds))
    of_costs, of_features = [name in SUPPORT for name in detectors], [kind == "latent separability" for kind in kinds]
    bound = np.where(of_features, np.sqrt((nats[..., of_costs] ** 2).sum(-1, keepdims=True)), np.inf)
    squares = np.minimum(nats, bound) ** 2
    return squares / np.sqrt(np.maximum(squares @ same, 1e-24))


def averaged(passes: Sequence[TargetProbabilities], verdict: LearnedVerdict) -> TargetProbabilities:
    """The probabilities that follow from the mean log odds of several passes of detection, and the mean evidence.

    Args:
        passes: over the same network; at least one.
        verdict: what they were computed with.
    """
    if len(passes) == 1:
        return passes[0]
    log_odds = np.mean([each.log_odds for each in passes], axis=0)
    per_class, backdoor = probabilities(log_odds, verdict.pair)
    evidence = tuple(
        {name: fmean(of_class[name] for of_class in of_passes) for name in of_passes[0]}
        for of_passes in zip(*(each.evidence for each in passes), strict=True)
    )
    return TargetProbabilities(tuple(per_class.tolist()), backdoor, evidence, tuple(log_odds.tolist()))


def probabilities(log_odds: Array, pair: float) -> tuple[Array, float]:
    """Probability of each class to be a target, and of any target, where a network has no, one or two of them.

    No target weighs 1, a class alone exp(its log odds), two classes the product of both times `pair`.

    Args:
        log_odds: `[classes]`.
        pair: 0 or more; 0 for the plain conditional logit.

    Example:
        >>> per_class, backdoor = probabilities(np.array([3.0, -4.0, -4.0]), pair=0.0)
        >>> per_class.round(3).tolist(), round(backdoor, 3)
        ([0.951, 0.001, 0.001], 0.953)
    """
    # Everything is divided by exp(2 * highest), or by 1 where no class is likely, so that nothing overflows.
    highest = max(float(log_odds.max()), 0.0)
    odds, unit = np.exp(log_odds - highest), math.exp(-highest)
    of_pairs = pair * odds * (odds.sum() - odds)
    alone, none = odds * unit, unit * unit
    total = none + alone.sum() + of_pairs.sum() / 2
    return ((alone + of_pairs) / total).clip(max=1.0), float(1 - none / total)


@cache
def learned_verdict() -> LearnedVerdict:
    """The verdict that is part of the package.

    Raises:
        InputError: the installed file is missing or damaged.
    """
    with as_file(files("onp") / "pretrained" / "verdict.json") as path:
        return read_verdict(path)


def read_verdict(path: Path) -> LearnedVerdict:
    """Read a file of `python -m onp.zoo learn`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(LIMIT))
        groups = {str(name): _group(value) for name, value in document["groups"].items()}
        floors = {str(name): float(value) for name, value in document["floors"].items()}
        pair, backdoor_from, none_below = (float(document[name]) for name in ("pair", "backdoor_from", "none_below"))
        verdict = LearnedVerdict(floors, groups, pair, backdoor_from, none_below, str(document["version"]))
        complete = set(GROUPS) <= set(groups) and all(set(group.terms) <= set(floors) for group in groups.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a learned verdict: {error!r}; install onp again") from None
    if not complete or not 0 <= verdict.none_below <= verdict.backdoor_from <= 1 or min(floors.values(), default=1) <= 0:
        raise InputError(f"{path} is not a learned verdict: its groups, floors or thresholds do not fit; install onp again")
    return verdict


def _group(document: Any) -> GroupModel:
    terms = {}
    for name, value in document["terms"].items():
        points = {str(feature): tuple((float(x), float(y)) for x, y in corners) for feature, corners in value["points"].items()}
        if any(
            corners != tuple(sorted(corners)) or sorted(y for _, y in corners) != [y for _, y in corners]
            for corners in points.values()
        ):
            raise ValueError(f"what {name} says does not rise")
        if INDEX not in points or not set(points) <= set(FEATURES):
            raise ValueError(f"what {name} says depends on other features")
        if any(y < 0 for corners in points.values() for _, y in corners) or float(value["missing"]) < 0:
            raise ValueError(f"what {name} says is below 0")
        terms[str(name)] = DetectorTerm(points, float(value["missing"]))
    return GroupModel(float(document["bias"]), float(document["log_classes"]), terms)
