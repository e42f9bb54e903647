"""`python -m onp.zoo learn`: from committed dossiers to the verdict, its figures and its card."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onp.detect.probability import LearnedVerdict
from onp.errors import InputError
from onp.files import write_atomically
from onp.options import option
from onp.zoo.learn.candidates import CANDIDATES, one_detector
from onp.zoo.learn.card import updated_card
from onp.zoo.learn.design import Design
from onp.zoo.learn.metrics import Judged, auc, threshold
from onp.zoo.learn.networks import Network, read_networks
from onp.zoo.learn.recipe_only import recipe_only
from onp.zoo.learn.results import (
    by_family_and_norm,
    by_subset,
    decisions,
    everything,
    groups_of,
    missed,
    reliability,
    roc,
    several_splits,
)
from onp.zoo.learn.tails import fit_tails
from onp.zoo.learn.validation import calibrate, calibrated, out_of_fold
from onp.zoo.learn.verdict_file import as_json, learned, thresholds

FEWEST = 12  #: networks of each kind


@dataclass(frozen=True)
class LearnConfig:
    """What is learned from, and where it is written."""

    dossiers: str = option("bench/dossiers/detection.jsonl.gz", "detection dossiers", group="the zoo", metavar="FILE")
    pretrained: str = option("onp/pretrained", "folder of verdict.json and its README.md", group="output", metavar="DIR")
    figures: str = option("bench/results/detection.json", "the figures of docs/detection.md", group="output", metavar="FILE")
    draws: int = option(1000, "of networks, for the intervals", group="output", metavar="N")
    quiet: bool = option(False, "no progress", group="output")
    json: bool = option(False, "errors as JSON", group="output")


def learn(config: LearnConfig) -> int:
    """Learn the verdict, judge it and what it is compared with, write all of it; returns the exit code.

    Raises:
        InputError: the dossiers cannot be used, or scikit-learn is missing.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError("Learning compares with models of scikit-learn; pip install 'onp-defense[zoo]'.") from None
    torch.set_num_threads(1)
    path, out = Path(config.dossiers), Path(config.pretrained)
    networks = read_networks(path)
    clean = sum(network.known and network.clean for network in networks)
    backdoored = sum(network.known and not network.clean for network in networks)
    if min(clean, backdoored) < FEWEST:
        raise InputError(
            f"{path} has {clean} clean networks and {backdoored} with a working backdoor; {FEWEST} each are needed."
        )
    design = Design.of(networks)
    log = _silent if config.quiet else print
    scores = {}
    for name, candidate in CANDIDATES.items():
        scores[name] = out_of_fold(design, candidate)
        log(f"{name}: judged by models that saw neither family nor architecture", flush=True)
    judged = {name: calibrated(design, each) for name, each in scores.items()}
    rows = np.arange(len(design.owner))
    calibration = calibrate(design, scores["tails"], rows)
    verdict = learned(fit_tails(design, rows), calibration, thresholds(judged["tails"]), datetime.date.today())
    document = _figures(networks, design, judged, verdict, config.draws)
    document["several_splits"] = several_splits(design, scores["tails"], judged["tails"], config.draws)
    write_atomically(out / "verdict.json", as_json(verdict))
    write_atomically(Path(config.figures), json.dumps(_finite(document), indent=1) + "\n")
    readme = out / "README.md"
    before = readme.read_text() if readme.exists() else ""
    write_atomically(readme, updated_card(before, verdict, document))
    for name, each in document["models"].items():
        log(f"{name}: " + ", ".join(f"{key} {value[0]:.3f}" for key, value in each.items() if key != "networks"), flush=True)
    return 0


def _figures(
    networks: list[Network], design: Design, judged: dict[str, Judged], verdict: LearnedVerdict, draws: int
) -> dict[str, Any]:
    ours = judged["tails"]
    detectors = {}
    for name in design.detectors:
        # An AUC needs no calibration: the probability is a rising function of the highest score.
        highest = one_detector(name)(design, np.arange(len(design.owner)), np.arange(len(design.owner))).max(1)
        detectors[name] = by_family_and_norm(design, Judged.of(design.owner, ~design.clean, highest, ours.named))
    return {
        "version": verdict.version,
        "zoo": {
            "networks": len(networks),
            "clean": sum(network.known and network.clean for network in networks),
            "backdoored": sum(network.known and not network.clean for network in networks),
            "left_out": sum(not network.known for network in networks),
            "rows": len(design.owner),
            "groups": groups_of(design),
        },
        "models": {name: everything(each, draws) for name, each in judged.items()},
        "recipe_only": {name: everything(each, draws) for name, each in recipe_only(networks).items()},
        "thresholds": {"backdoor_from": verdict.backdoor_from, "none_below": verdict.none_below},
        "decisions": decisions(ours, verdict),
        "subsets": by_subset(design, ours),
        "subsets_hand_made": by_subset(design, judged["hand_made"]),
        "auc": by_family_and_norm(design, ours),
        "auc_hand_made": by_family_and_norm(design, judged["hand_made"]),
        "detectors": detectors,
        "detectors_alone": {name: round(_alone(design, name), 4) for name in design.detectors},
        "roc": {name: roc(each) for name, each in judged.items()},
        "reliability": {name: reliability(each) for name, each in judged.items()},
        "wrong": missed(design, ours, threshold(ours)),
    }


def _alone(design: Design, name: str) -> float:
    rows = np.arange(len(design.owner))
    highest = one_detector(name)(design, rows, rows).max(1)
    return auc(Judged.of(design.owner, ~design.clean, highest))


def _finite(value: Any) -> Any:
    """nan as null, which JSON knows."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _silent(*_: object, **__: object) -> None:
    """Prints nothing."""
