"""The rows of a scan as text for a terminal, as Markdown and as CSV; names from files cannot pass for anything else."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from onp.defend.report.probabilities import in_words
from onp.errors import printable
from onp.scan.row import Row

COLUMNS = ("name", "status", "probability", "class_index", "class_name", "acc", "arch", "arch_from", "sha256")
MORE = ("bytes", "same_as", "report", "headline", "warning", "error")
"""Further columns of the CSV. Seconds are in results.jsonl alone, so that two scans can be compared line by line."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def text_table(rows: Sequence[Row]) -> str:
    """For a terminal: a line a model, and below it the sentence of one that has no verdict."""
    cells = [("model", "verdict", "probability", "target", "ACC", "network")]
    cells += [
        (printable(row.name), row.status, _probability(row), printable(_class(row), 40), _acc(row), _arch(row)) for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for at in range(len(rows), 0, -1):
        if rows[at - 1].error is not None:
            lines.insert(at + 1, f"    {printable(rows[at - 1].error, None)}")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], summary: str) -> str:
    """A table with a line a model, and the reasons of those without a verdict below it."""
    head = ("model", "verdict", "probability", "target", "ACC", "network", "SHA-256")
    lines = ["# Scan", "", _plain(summary), "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        name = f"[{_plain(row.name)}]({row.report})" if row.report else _plain(row.name)
        cells = (
            name,
            row.status,
            _probability(row),
            _plain(_class(row)),
            _acc(row),
            _plain(_arch(row)),
            (row.sha256 or "-")[:16],
        )
        lines.append(f"| {' | '.join(cells)} |")
    failures = [row for row in rows if row.error is not None]
    if failures:
        lines += ["", "## Without a verdict", ""]
        lines += [f"- {_plain(row.name)}: {row.kind}. {_plain(row.error)}" for row in failures]
    return "\n".join(lines) + "\n"


def comma_separated(rows: Sequence[Row]) -> str:
    """All that the rows say in one line each; a text that a spreadsheet would take for a formula gets a quote before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*COLUMNS, *MORE))
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in (*COLUMNS, *MORE)])
    return buffer.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        line = printable(value, None)
        return f"'{line}" if line.startswith(_FORMULA) else line
    return "" if value is None else value


def _probability(row: Row) -> str:
    return "-" if row.probability is None else in_words(row.probability)


def _acc(row: Row) -> str:
    return "-" if row.acc is None else f"{100 * row.acc:.1f} %"


def _class(row: Row) -> str:
    return "-" if row.class_index is None else row.class_name or f"class {row.class_index}"


def _arch(row: Row) -> str:
    shown = row.arch or "-"
    return f"{shown} (from the {row.arch_from})" if row.arch_from in ("weights", "config.json") and row.arch else shown


def _plain(text: str | None) -> str:
    """Text that Markdown shows as it is."""
    line = printable(text or "", None)
    return "".join(f"\\{each}" if each in r"\`*_{}[]<>()#|!&~" else each for each in line)
