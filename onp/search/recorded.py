"""An evaluator that keeps its scores in the resume store, so that a resumed run reads them instead of computing them again."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from onp.engine.evaluator import MaskScorer, Scores
from onp.engine.mask_table import MaskTable
from onp.resume import Store

FIELDS = tuple(field.name for field in fields(Scores))


class RecordedEvaluator:
    """A `MaskScorer` that first looks among the masks which this run has scored before.

    Everything after the seed is deterministic: a resumed search asks for the same masks in the same order.

    Args:
        evaluator: scores the masks that are not in the store.
        store: of the run.
        name: of the scores in the store, one search each.
    """

    def __init__(self, evaluator: MaskScorer, store: Store, name: str) -> None:
        self._evaluator, self._store, self._file = evaluator, store, f"{name}.jsonl"
        self.families, self.units = evaluator.families, evaluator.units
        self._base: Tensor | None = None
        self._scored = MaskTable[dict[str, Any]]()
        self._seconds_before = 0.0
        for seconds, scores in store.lines(self._file, _parsed):
            self._seconds_before += seconds
            self._scored.update(scores)

    @property
    def seconds(self) -> float:
        """Of scoring, those of earlier runs included."""
        return self._seconds_before + self._evaluator.seconds

    @property
    def evaluations(self) -> int:
        """Masks scored by this run itself."""
        return self._evaluator.evaluations

    def commit(self, mask: Tensor) -> None:
        """Make `mask`, bool `[V]`, the base of the evaluator, once it scores a mask again."""
        self._base = mask

    def score(self, masks: Tensor) -> Scores:
        """The scores of `masks`, bool `[B, V]`, bit by bit those that were computed first."""
        keys, rows = self._scored.missing(masks)
        if rows:
            self._compute([keys[row] for row in rows], masks[rows])
        columns = {name: [self._scored[key][name] for key in keys] for name in FIELDS}
        kinds = {name: torch.int64 if name.endswith("count") else torch.float64 for name in FIELDS}
        return Scores(**{name: torch.tensor(column, dtype=kinds[name]) for name, column in columns.items()})

    def _compute(self, keys: list[bytes], masks: Tensor) -> None:
        if self._base is not None:
            self._evaluator.commit(self._base)
            self._base = None
        before = self._evaluator.seconds
        scores = self._evaluator.score(masks)
        seconds = self._evaluator.seconds - before
        rows = [{name: getattr(scores, name)[row].tolist() for name in FIELDS} for row in range(len(keys))]
        # JSON keeps every bit of a float: Python writes the shortest decimal that reads back the same.
        line = {"masks": [key.hex() for key in keys], "scores": rows, "seconds": seconds}
        self._store.append(self._file, json.dumps(line))
        self._scored.update(zip(keys, rows, strict=True))


def _parsed(line: dict[str, Any]) -> tuple[float, dict[bytes, dict[str, Any]]]:
    """Seconds and scores by key; masks whose scores lack a field, in the file of an older version, are scored again."""
    pairs = zip(line["masks"], line["scores"], strict=True)
    scores = {bytes.fromhex(key): scores for key, scores in pairs if set(FIELDS) <= set(scores)}
    return float(line.get("seconds", 0.0)), scores
