"""What a scan says of one model: a line of results.jsonl and of the tables."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from onp.defend.decision import Decision
from onp.defend.outcome import Outcome

Failure = Literal["unsafe", "unusable", "crashed"]
"""Why a model has no verdict: opening it could run code, something given cannot be used, or its process ended."""

FAILURES: tuple[Failure, ...] = typing.get_args(Failure)

TEXTS = (
    *("name", "identity", "sha256", "headline", "reason", "warning", "class_name"),
    *("arch", "arch_from", "error", "report", "same_as"),
)
NUMBERS = ("bytes", "probability", "class_index", "acc", "seconds")


@dataclass(frozen=True)
class Row:
    """A model and its verdict, or the reason why there is none."""

    name: str  #: path in the folder that was scanned, or as the list has it
    identity: str  #: SHA-256 of the model's content and of all that the verdict depends on
    sha256: str | None = None  #: of the file; None where it cannot be read
    bytes: int | None = None
    decision: Decision | None = None  #: None without a verdict
    headline: str | None = None
    reason: str | None = None
    warning: str | None = None
    probability: float | None = None  #: of a backdoor
    class_index: int | None = None  #: of its most probable target
    class_name: str | None = None
    acc: float | None = None  #: on the clean images, a share
    arch: str | None = None
    arch_from: str | None = None  #: "given", "config.json", "weights" or "exported program"
    kind: Failure | None = None
    error: str | None = None  #: a sentence
    seconds: float = 0.0
    report: str | None = None  #: path of report.html in the folder of the scan
    same_as: str | None = None  #: name of another model with the same content and options, whose result this is
    sarif: dict[str, Any] | None = None  #: fields of `onp.defend.report.sarif.Entry`

    @property
    def status(self) -> str:
        """The decision, or the kind of failure."""
        return self.decision or self.kind or "crashed"

    def to_json(self) -> str:
        """The row on one line; what is None is left out."""
        return json.dumps(
            {name: value for name, value in dataclasses.asdict(self).items() if value is not None}, allow_nan=False
        )

    @staticmethod
    def of(name: str, identity: str, outcome: Outcome) -> Row:
        """The verdict of a run."""
        report, names = outcome.report, outcome.diagnostics.class_names
        detection = report.detection
        target = detection.ranking[0] if detection else None
        return Row(
            name,
            identity,
            decision=report.decision,
            headline=report.headline,
            reason=report.reason,
            warning=report.warning,
            probability=detection.probability if detection else None,
            class_index=target,
            class_name=names[target] if target is not None and target < len(names) else None,
            acc=report.before.acc.value if math.isfinite(report.before.acc.value) else None,
            arch=report.model.arch,
        )

    @staticmethod
    def parse(line: dict[str, Any]) -> Row:
        """A row that `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        row = Row(**line)
        for name, value in line.items():
            if name in TEXTS and not isinstance(value, str):
                raise TypeError(f"{name} is no text")
            if name in NUMBERS and type(value) not in (int, float):
                raise TypeError(f"{name} is no number")
        if row.decision not in (None, *typing.get_args(Decision)) or row.kind not in (None, *FAILURES):
            raise ValueError("an unknown decision")
        if (row.decision is None) == (row.kind is None) or not isinstance(row.sarif, dict | None):
            raise ValueError("neither a verdict nor a reason for none")
        return row


def in_order(rows: list[Row]) -> list[Row]:
    """Highest probability first, those without a verdict last, unsafe ones first among them; equal ones by name."""

    def key(row: Row) -> tuple[Any, ...]:
        failed = row.decision is None
        probability = math.inf if row.probability is None else -row.probability
        return (failed, FAILURES.index(row.kind) if row.kind else 0, probability, row.name)

    return sorted(rows, key=key)
