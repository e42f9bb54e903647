"""Search dossiers: of one network all that a search for masks can be learned from, without the network itself.

A dossier holds, for each split of clean images, what the defence can know, and once a network the neuron graph and the truth:
what the true triggers use, and what some hundred masks really do. docs/zoo.md describes the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onp import progress
from onp.data.images import joined
from onp.errors import InputError, first_line
from onp.files import read_regular
from onp.numerics import strict_float32
from onp.pool import Workers, run_all
from onp.zoo.config import ZooConfig
from onp.zoo.entry import SPLITS, Entry, read_zoo
from onp.zoo.knowledge import Prepared, prepare, split_images
from onp.zoo.packed_graph import relation_graphs
from onp.zoo.search_file import SearchDossier, read_search_dossier, search_path, write_search_dossier
from onp.zoo.true_effects import MaskTruth, TrueCase, true_effects
from onp.zoo.truth import TrueBackdoor

LEAST_ASR = 0.3  #: true ASR from which a backdoor is in the dossier; of a weaker one a mask has little to remove
SCORED, SCORED_LOSS = 24, 0.05  #: masks that the search problem of each split scores, and the most true ACC that they lose
MOST_DETECTION_BYTES = 2**20


def measure_search(config: ZooConfig) -> int:
    """Write the search dossiers that are not there yet, of every network; returns how many failed.

    Raises:
        InputError: there is no zoo.
    """
    wanted, folder = range(config.first, config.first + config.count), Path(config.out) / "dossiers"
    entries = [entry for entry in read_zoo(config.out) if entry.index in wanted]
    todo = [entry for entry in entries if not search_path(folder, entry.index).exists()]
    folder.mkdir(exist_ok=True)
    workers = Workers(config.ray, 1, config.gpu_share, 0 if config.ray else config.workers)
    failures = 0
    with progress.stage("search dossiers", len(todo), config.quiet, config.json) as bar:
        for entry, result in run_all(partial(search_dossier, folder=folder), todo, workers):
            if isinstance(result, Exception):
                failures += 1
                bar.print(f"network {entry.index} failed: {first_line(result)}")
            bar.advance(note=f"{entry.index:04d}")
    return failures


def search_dossier(entry: Entry, folder: str | Path) -> dict[str, Any]:
    """Make the dossier of one network, or read what was made before.

    Args:
        entry: the network.
        folder: of all dossiers. Detection scores are read from `NNNN-S.json` there; where there is none for a split, those of
            the first split serve it, and those are measured where there are none at all.

    Returns:
        A summary: `index`, `bytes`, `units`, `masks`, `seconds`, and for each backdoor `attack`, `asr` before, and of the best
        mask `best_asr`, `acc_loss` and `evaluations`; `best_asr` is nan where no mask was found.
    """
    torch.set_num_threads(1)
    path = search_path(folder, entry.index)
    if not path.exists():
        write_search_dossier(path, make_search_dossier(entry, Path(folder)))
    return summary(read_search_dossier(path), path.stat().st_size)


@strict_float32()
def make_search_dossier(entry: Entry, folder: Path) -> SearchDossier:
    """Measure all of it; arguments as of `search_dossier`."""
    clock = _Clock()
    victim = entry.victim()
    backdoors = tuple(
        TrueBackdoor(trigger.name, trigger, -1 if trigger.all_to_all else target)
        for (trigger, target), card in zip(entry.triggers(), entry.card["backdoors"], strict=True)
        if card.get("asr", 0.0) >= LEAST_ASR
    )
    true_targets = [] if entry.card["clean"] else [each.target for each in backdoors if each.target >= 0]
    clock.lap("capture")

    def prepared(number: int, or_else: Mapping[str, Sequence[float]] | None = None) -> list[Prepared]:
        # Without a file: to detect again would take longer than all else that is measured of a split.
        stored = _stored(folder / f"{entry.index:04d}-{number}.json") or or_else
        given = split_images(victim, number, entry.clean(number), stored)
        clock.lap("detection")
        made = [prepare(victim, given, target) for target in dict.fromkeys([*true_targets, given.named])]
        clock.lap("knowledge")
        return made

    first = prepared(0)
    orders = [order for one in first for order in (one.problem.features.score_to_cost, one.problem.features.taylor)]
    case = TrueCase(victim, backdoors, entry.test(), joined(entry.clean(0), entry.clean(1)))
    truth = true_effects(case, orders, int(entry.card["seed"]))
    clock.lap("truth")
    masks = truth.masks
    knowledge, scores = [one.knowledge(masks.keep, _scored(masks, 0)) for one in first], first[0].given.scores.log_costs
    del first
    for number in range(1, SPLITS):
        knowledge += [one.knowledge(masks.keep, _scored(masks, number)) for one in prepared(number, scores)]
    graphs = relation_graphs(victim)
    clock.lap("knowledge")
    card = {key: entry.card[key] for key in ("index", "arch", "clean", "after", "acc", "backdoors")}
    return SearchDossier(card, victim.layers, victim.classes, graphs, tuple(knowledge), truth, clock.seconds)


def summary(dossier: SearchDossier, size: int) -> dict[str, Any]:
    """The summary of a dossier whose file has `size` bytes; see `search_dossier`."""
    masks = dossier.truth.masks
    backdoors = []
    for number, each in enumerate(dossier.truth.backdoors):
        row = 0 if each.best is None else 1 + each.best
        backdoors.append(
            {
                "attack": each.name,
                "asr": float(masks.asr[0, number]),
                "best_asr": float(masks.asr[row, number]) if row else float("nan"),
                "acc_loss": float(masks.acc[0] - masks.acc[row]),
                "evaluations": each.evaluations,
            }
        )
    return {
        "index": dossier.card["index"],
        "bytes": size,
        "units": masks.keep.shape[1],
        "masks": len(masks.keep),
        "seconds": dossier.seconds,
        "backdoors": backdoors,
    }


def _scored(masks: MaskTruth, split: int) -> Tensor:
    """Masks that one split's search problem scores: others for each split, all of a moderate true ACC loss."""
    moderate = (masks.acc[0] - masks.acc[1:] <= SCORED_LOSS).nonzero()[:, 0]
    count = min(SCORED, len(moderate))
    rows = (torch.arange(count) * len(moderate) + split * len(moderate) // SPLITS) // max(1, count)
    return moderate[rows.clamp_max(len(moderate) - 1)]


def _stored(path: Path) -> Mapping[str, Sequence[float]] | None:
    """The log costs of a detection dossier, or None without one."""
    if not path.exists():
        return None
    try:
        found = json.loads(read_regular(path, MOST_DETECTION_BYTES))["detectors"]
        return {str(name): [float("nan") if cost is None else float(cost) for cost in costs] for name, costs in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged; delete it, and detection runs again.") from error


class _Clock:
    """Adds up the CPU seconds of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        """What passed since the last lap counts for this stage."""
        now = time.process_time()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 1)
        self._last = now
