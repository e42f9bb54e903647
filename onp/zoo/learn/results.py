"""The figures of docs/detection.md, from probabilities of networks whose family and architecture were not learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onp.detect.class_features import FEATURES, INDEX, Array
from onp.detect.probability import GROUPS, LearnedVerdict
from onp.detect.separability import SEPARABILITY
from onp.zoo.entry import SPLITS
from onp.zoo.learn.design import Design
from onp.zoo.learn.metrics import BINS, Judged, auc, figures, threshold
from onp.zoo.learn.networks import Network
from onp.zoo.learn.validation import calibrated_means

LOW_RATE = 0.02
NORMS = ("batch norms", "statistics taken anew", "no batch norms")
SUBSETS: dict[str, Callable[[Network], bool]] = {
    "no batch norms": lambda network: norm_type(network) == "no batch norms",
    "batch-norm statistics taken anew": lambda network: network.card["after"] == "bn_statistics",
    "clean-label attacks": lambda network: "clean_label" in families(network),
    "poison rates below 2 %": lambda network: bool(network.working) and min(_rates(network)) < LOW_RATE,
    "two backdoors": lambda network: len(network.working) == 2,
    "some clean epochs": lambda network: network.card["after"] == "clean_epochs",
    "half precision": lambda network: network.card["after"] == "half",
    "repaired": lambda network: network.card["after"] == "repaired",
    "more than 20 classes": lambda network: network.classes > 20,
    "separability measured": lambda network: any(SEPARABILITY in each.log_costs for each in network.measured),
}
"""Of networks, for figures of their own."""


def norm_type(network: Network) -> str:
    """One of `NORMS`."""
    if not network.card["batch_norms"]:
        return NORMS[2]
    return NORMS[1] if network.card["after"] == "bn_statistics" else NORMS[0]


def families(network: Network) -> set[str]:
    """Attack families of the backdoors that work."""
    return {str(each["family"]) for each in network.working}


def _rates(network: Network) -> list[float]:
    return [float(each["poison_rate"]) for each in network.working]


def by_subset(design: Design, judged: Judged) -> dict[str, dict[str, Any]]:
    """Share found at the threshold of all clean networks, and AUC, per subset.

    Where a subset has no clean network, as those of attacks, its backdoored ones stand against all clean ones.
    """
    limit, found = threshold(judged), {}
    for name, belongs in SUBSETS.items():
        mine = _rows(design, belongs)
        positive, negative = mine & judged.backdoored, mine & ~judged.backdoored
        against = negative if negative.any() else ~judged.backdoored
        found[name] = {
            "backdoored": _networks(judged, positive),
            "clean": _networks(judged, negative),
            "tpr": interval(judged, positive, lambda rows: rows.probability >= limit),
            "fpr": interval(judged, negative, lambda rows: rows.probability >= limit),
            "auc": _rounded(auc(judged.subset(positive | against))),
        }
    return found


def by_family_and_norm(design: Design, judged: Judged) -> dict[str, dict[str, Any]]:
    """AUC of the backdoored networks of a family and norm type against all clean ones of that norm type; {family: {norm: }}."""
    found: dict[str, dict[str, Any]] = {}
    for family in sorted({each for network in design.networks for each in families(network)}):
        found[family] = {}
        for norm in (*NORMS, "all"):
            kind = _rows(design, lambda network, norm=norm: norm in ("all", norm_type(network)))  # type: ignore[misc]
            mine = _rows(design, lambda network, family=family: family in families(network))  # type: ignore[misc]
            rows = kind & (mine | ~judged.backdoored)
            found[family][norm] = {
                "auc": _rounded(auc(judged.subset(rows))),
                "networks": _networks(judged, kind & mine),
            }
    return found


def decisions(judged: Judged, verdict: LearnedVerdict) -> dict[str, list[float]]:
    """Shares of clean and of backdoored networks by decision, with intervals."""
    high, low = verdict.backdoor_from, verdict.none_below
    return {
        "clean_as_backdoor": interval(judged, ~judged.backdoored, lambda rows: rows.probability >= high),
        "clean_inconclusive": interval(judged, ~judged.backdoored, lambda rows: _between(rows, low, high)),
        "backdoored_missed": interval(judged, judged.backdoored, lambda rows: rows.probability < low),
        "backdoored_inconclusive": interval(judged, judged.backdoored, lambda rows: _between(rows, low, high)),
    }


def roc(judged: Judged) -> list[list[float]]:
    """Points (false-positive rate, true-positive rate)."""
    kinds = [judged.subset(judged.backdoored == kind) for kind in (False, True)]
    levels = np.unique(np.append(judged.probability, 0.0))[::-1]
    points = [[each.mean(each.probability >= level) for each in kinds] for level in levels]
    return [[0.0, 0.0], *([round(x, 4), round(y, 4)] for x, y in points)]


def reliability(judged: Judged) -> list[dict[str, float]]:
    """Per bin of probability: mean probability, share of backdoored rows, number of rows."""
    bins = np.minimum((judged.probability * BINS).astype(int), BINS - 1)
    return [
        {
            "probability": _rounded(mine.mean(mine.probability)),
            "backdoored": _rounded(mine.mean(mine.backdoored)),
            "rows": len(mine.owner),
        }
        for mine in (judged.subset(bins == each) for each in np.unique(bins))
    ]


def missed(design: Design, judged: Judged, limit: float) -> list[dict[str, Any]]:
    """Networks that a threshold gets wrong on most splits, with what the detectors measured."""
    features = design.features(design.floors(np.arange(len(design.owner))))[..., FEATURES.index(INDEX)]
    found = []
    for i, network in enumerate(design.networks):
        rows = np.flatnonzero(design.owner == i)
        reached = judged.probability[rows] >= limit
        if (reached.mean() > 0.5) == (not network.clean):
            continue
        # Of a clean network, the class that the highest index belongs to.
        target = network.targets[0] if network.targets else int(np.nan_to_num(features[rows[0]], nan=-np.inf).max(1).argmax())
        index = {
            name: _rounded(np.mean(features[rows, target, d]), 2)
            for d, name in enumerate(design.detectors)
            if np.isfinite(features[rows, target, d]).all()
        }
        training = network.card["training"]
        found.append({
            "index": network.index, "clean": network.clean, "arch": network.card["arch"], "data": training["data"],
            "after": network.card["after"], "acc": network.card["acc"],
            "backdoors": [
                {key: each.get(key) for key in ("attack", "target", "poison_rate", "asr")} for each in network.working
            ],
            "probability": [_rounded(value) for value in judged.probability[rows]],
            "named": [bool(value) for value in judged.named[rows]],
            "anomaly_index": index,
        })  # fmt: skip
    return found


def several_splits(design: Design, scores: Array, judged: Judged, draws: int) -> dict[str, dict[str, Any]]:
    """`everything` of the networks with all splits, by single splits and by the mean log odds of all of them; else nothing.

    Args:
        design: of all networks.
        scores: of all rows, from models that saw neither family nor architecture.
        judged: the same, calibrated.
        draws: of networks, for the intervals.
    """
    complete = np.flatnonzero(np.bincount(design.owner, minlength=len(design.networks)) == SPLITS)
    if not len(complete):
        return {}
    single, mean = judged.subset(np.isin(judged.owner, complete)), calibrated_means(design, scores, complete)
    return {"one split": everything(single, draws), "mean of three splits": everything(mean, draws)}


def everything(judged: Judged, draws: int) -> dict[str, Any]:
    """`figures`, with the number of networks."""
    return {"networks": len(np.unique(judged.owner)), **figures(judged, draws)}


def interval(
    judged: Judged, rows: NDArray[np.bool_], holds: Callable[[Judged], NDArray[np.bool_]], draws: int = 1000
) -> list[float]:
    """Share of networks that something holds for, with its 95 % interval over draws of networks; nan without rows."""
    mine = judged.subset(rows)
    networks, owner = np.unique(mine.owner, return_inverse=True)
    if not len(networks):
        return [float("nan")] * 3
    values, size = np.bincount(owner, mine.weight * holds(mine)), np.bincount(owner, mine.weight)
    chosen = np.random.default_rng(0).integers(len(networks), size=(draws, len(networks)))
    shares = values[chosen].sum(1) / size[chosen].sum(1)
    return [_rounded(value) for value in (values.sum() / size.sum(), *np.percentile(shares, [2.5, 97.5]))]


def groups_of(design: Design) -> dict[str, int]:
    """Rows by group of the verdict."""
    return {name: int((design.group == g).sum()) for g, name in enumerate(GROUPS)}


def _between(rows: Judged, low: float, high: float) -> NDArray[np.bool_]:
    return (rows.probability >= low) & (rows.probability < high)


def _rows(design: Design, belongs: Callable[[Network], bool]) -> NDArray[np.bool_]:
    return np.array([belongs(design.networks[i]) for i in design.owner])


def _networks(judged: Judged, rows: NDArray[np.bool_]) -> int:
    return len(np.unique(judged.owner[rows]))


def _rounded(value: float | Sequence[float], digits: int = 4) -> float:
    return round(float(value), digits)  # type: ignore[arg-type]
