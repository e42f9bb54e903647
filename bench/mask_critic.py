"""How well a critic foretells the true ASR of a mask, against the inverted triggers alone: `python bench/mask_critic.py`.

The search dossiers hold masks that a search problem has scored with inverted triggers, and their true ASR on test images. A
critic is a regression of the true ASR on these scores and on what the units say (below); it is learned without the attack
families and the architecture of the network that it is judged on. For each network: Spearman's correlation over the masks, the
root mean square error, and by how much the true ASR of the mask that it finds best lies above the least, among masks that lose
at most one point. Calibration: the true ASR of all masks by what is foretold. Writes bench/results/mask_critic.json and prints
the means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from torch import Tensor
from unit_scores import DOSSIERS, Units, examples, fitted, without

from onp.files import write_atomically
from onp.search.features import NodeFeatures
from onp.zoo.search_file import read_search_dossier

RESULTS = Path(__file__).parent / "results" / "mask_critic.json"
SURROGATE = 5  # the first columns: what inverted triggers say
BINS = 5  # of the foretold ASR
WITHIN, VARIED = (
    0.01,
    0.02,
)  # lost accuracy of masks to choose from; deviation of the true ASR from which an order means something

Array = NDArray[np.float32]
Model = Callable[[], Any]
CRITICS: dict[str, tuple[Model, int | None]] = {
    "ridge, inverted triggers": (Ridge, SURROGATE),
    "ridge, units too": (Ridge, None),
    "boosting, inverted triggers": (partial(HistGradientBoostingRegressor, max_depth=3, learning_rate=0.05), SURROGATE),
    "boosting, units too": (partial(HistGradientBoostingRegressor, max_depth=3, learning_rate=0.05), None),
}


@dataclass(frozen=True, eq=False)
class Case:
    """The masks of one network and split, M of them."""

    families: frozenset[str]
    arch: str
    inputs: Array  #: `[M, F]`
    asr: Array  #: `[M]`, true
    lost: Array  #: `[M]`, true accuracy, a share


def cases() -> list[Case]:
    known, found = examples(DOSSIERS), []
    for path in sorted(DOSSIERS.glob("*.search.xz")):
        dossier = read_search_dossier(path)
        families = frozenset(str(each["family"]) for each in dossier.card["backdoors"])
        arch, truth = dossier.card["arch"].split(":")[0], dossier.truth.masks
        numbers = {each.target: number for number, each in enumerate(dossier.truth.backdoors)}
        for split in (each for each in dossier.knowledge if each.target in numbers):
            scorer = fitted(without(known, families, arch), "linear")
            with torch.no_grad():
                learned = torch.sigmoid(scorer(Units.of(split.features, tuple(dossier.graphs.values()))))
            keep, weights = truth.keep[split.masks], torch.tensor([row.weight for row in split.bank])
            inputs = _inputs(split.scores, weights / weights.sum(), keep, (split.features, learned))
            asr = truth.asr[1:][split.masks][:, numbers[split.target]]
            lost = (truth.acc[0] - truth.acc[1:])[split.masks]
            found.append(Case(families, arch, inputs.numpy(), asr.numpy(), lost.numpy()))
    return found


def _inputs(scores: dict[str, Tensor], weights: Tensor, keep: Tensor, units: tuple[NodeFeatures, Tensor]) -> Tensor:
    features, learned = units
    share, kept = scores["asr"], keep.float()
    sums = (learned, features.taylor.clamp_min(0), features.backdoor_score, features.attack_attribution.clamp_min(0))
    return torch.stack(
        (
            share[1:] @ weights,
            scores["asr_soft"][1:] @ weights,
            share[1:].max(1).values,
            share[1:].min(1).values,
            (share[0] @ weights).expand(len(keep)),
            1 - kept.mean(1),
            scores["divergence"][1:],
            *(kept @ (each / each.sum().clamp_min(1e-9)) for each in sums),
        ),
        1,
    )


def judged(case: Case, foretold: Array) -> dict[str, float | None]:
    order = float(spearmanr(foretold, case.asr).statistic) if case.asr.std() > VARIED and np.std(foretold) > 0 else None
    cheap, above = case.lost <= WITHIN, None
    if cheap.any():
        above = float(case.asr[np.where(cheap, foretold, np.inf).argmin()] - case.asr[cheap].min())
    return {"spearman": order, "rmse": float(np.sqrt(np.mean((foretold - case.asr) ** 2))), "above": above}


def calibration(foretold: Array, asr: Array) -> list[dict[str, float]]:
    """Of the masks in each bin of the foretold ASR: their number, and the means of what is foretold and of what is true."""
    bins = np.clip((foretold * BINS).astype(int), 0, BINS - 1)
    found = []
    for number in range(BINS):
        own = bins == number
        if own.any():
            found.append({"masks": int(own.sum()), "foretold": float(foretold[own].mean()), "true": float(asr[own].mean())})
    return found


def main() -> None:
    every = cases()
    rows: list[dict[str, Any]] = []
    foretold: dict[str, list[Array]] = {}
    for case in every:
        others = [each for each in every if each.arch != case.arch and not each.families & case.families]
        answers = {"inverted triggers alone": case.inputs[:, 0]}
        for name, (model, columns) in CRITICS.items():
            inputs = np.concatenate([each.inputs[:, :columns] for each in others])
            critic = model().fit(inputs, np.concatenate([each.asr for each in others]))
            answers[name] = critic.predict(case.inputs[:, :columns])
        rows.append({name: judged(case, answer) for name, answer in answers.items()})
        for name, answer in answers.items():
            foretold.setdefault(name, []).append(answer)
    asr = np.concatenate([case.asr for case in every])
    calibrated = {name: calibration(np.concatenate(values), asr) for name, values in foretold.items()}
    write_atomically(RESULTS, json.dumps({"rows": rows, "calibration": calibrated}) + "\n")
    print(
        "| critic | n | Spearman | root mean square error | ASR of its choice above the least, points |\n|---|---|---|---|---|"
    )
    for name in rows[0]:
        kept = {key: [row[name][key] for row in rows if row[name][key] is not None] for key in ("spearman", "rmse", "above")}
        means = [fmean(values) for values in kept.values()]
        print(f"| {name} | {len(rows)} | {means[0]:.2f} | {means[1]:.3f} | {100 * means[2]:.1f} |")
    print("| foretold by | masks: foretold, true ASR |\n|---|---|")
    for name, bins in calibrated.items():
        shown = (f"{each['masks']}: {100 * each['foretold']:.0f}, {100 * each['true']:.0f}" for each in bins)
        print(f"| {name} | {'; '.join(shown)} |")


if __name__ == "__main__":
    main()
