"""Detection dossiers: what every detector measures of a network of the zoo, from three splits of clean images."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onp import progress
from onp.data.images import joined, split
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectRun
from onp.detect.scan import scan
from onp.errors import InputError, first_line
from onp.files import write_atomically
from onp.numerics import strict_float32
from onp.pool import Workers, run_all
from onp.zoo.config import ZooConfig
from onp.zoo.entry import SPLITS, Entry, read_zoo

DIGITS = 4  # of a cost


@dataclass(frozen=True)
class Task:
    """One network and one split of its clean images."""

    entry: Entry
    split: int
    alone: bool  #: whether this process may use all its threads

    @property
    def path(self) -> Path:
        """Of the dossier."""
        return self.entry.folder.parents[1] / "dossiers" / f"{self.entry.index:04d}-{self.split}.json"


def measure_detection(config: ZooConfig) -> int:
    """Write the dossiers that are not there yet, those of the first split first, and all of them as one file.

    The file is `detection.jsonl.gz` in the folder of the zoo; see `pack`.

    Returns:
        How many failed.

    Raises:
        InputError: there is no zoo.
    """
    wanted = range(config.first, config.first + config.count)
    entries = [entry for entry in read_zoo(config.out) if entry.index in wanted]
    alone = config.ray is None and config.workers < 1
    tasks = [Task(entry, number, alone) for number in range(min(config.splits, SPLITS)) for entry in entries]
    todo = [task for task in tasks if not task.path.exists()]
    failures = 0
    with progress.stage("dossiers", len(todo), config.quiet, config.json) as bar:
        for task, result in run_all(
            measure, todo, Workers(config.ray, 1, config.gpu_share, 0 if config.ray else config.workers)
        ):
            if isinstance(result, Exception):
                failures += 1
                bar.print(f"network {task.entry.index} failed: {first_line(result)}")
            bar.advance(note=f"{task.entry.index:04d}-{task.split}")
    pack(entries, Path(config.out) / "detection.jsonl.gz")
    return failures


@strict_float32()
def measure(task: Task) -> dict[str, Any]:
    """Scan one network with one split and write its dossier."""
    if not task.alone:
        torch.set_num_threads(1)
    start, victim, images = time.monotonic(), task.entry.victim(), task.entry.clean(task.split)
    clean = split(images, task.split)
    bn = bn_statistics(victim, joined(clean.build, clean.score))
    loaded = time.monotonic()
    found = scan(victim, clean, bn, DetectRun(seed=task.split))
    dossier = {
        "index": task.entry.index,
        "split": task.split,
        "images": len(clean.build) + len(clean.score),
        "classes": victim.classes,
        "batch_norms": bn.norms,
        "disagreement": _rounded(bn.disagreement),
        "pruned": bn.pruned,
        "detectors": {name: [_rounded(value) for value in values] for name, values in found.log_costs.items()},
        "seconds": {"loading": round(loaded - start, 2), "scan": round(time.monotonic() - loaded, 2)},
    }
    task.path.parent.mkdir(exist_ok=True)
    write_atomically(task.path, json.dumps(dossier) + "\n")
    return dossier


def _rounded(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def pack(entries: Iterable[Entry], path: Path) -> None:
    """Write all dossiers of the networks, each with the card, as lines of JSON; the same bytes for the same dossiers."""
    lines = []
    for entry in entries:
        for number in range(SPLITS):
            one = Task(entry, number, True).path
            if one.exists():
                lines.append(json.dumps(json.loads(one.read_text()) | {"card": _facts(entry.card)}))
    write_atomically(path, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    """What the card says of the network, without places."""
    return {name: value for name, value in card.items() if name not in ("files", "torch", "seconds")}


MOST_BYTES = 200_000_000  # of dossiers once they are unpacked


def read_dossiers(path: str | Path) -> Iterator[dict[str, Any]]:
    """The dossiers of a file that `pack` wrote; costs that were not measured are None.

    Raises:
        InputError: the file is missing, damaged or too large.
    """
    try:
        with gzip.open(path) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"{path} holds more than {MOST_BYTES:,} bytes; give the detection.jsonl.gz of a zoo.")
        for line in text.decode().splitlines():
            yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} holds no dossiers of a zoo; give its detection.jsonl.gz.") from error
