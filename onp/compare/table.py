"""The rows of a comparison as results.csv and results.md."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onp.compare.plots import write_plots
from onp.files import write_atomically

Row = dict[str, Any]
COLUMNS = (
    *("victim", "attack", "arch", "data", "defence", "seed", "error", "decision"),
    *("acc_before", "acc", "asr_before", "asr", "ra_before", "ra", "asr_untriggered", "der"),
    *("acc_reactivated", "asr_reactivated", "asr_poisoned", "threshold", "threshold_oracle", "acc_oracle", "asr_oracle"),
    *("pruned", "units", "evaluations", "seconds", "where"),
)

MEANING = (
    "- No defence saw a trigger or an evaluation image; a victim is trained once, and the seeds are those of the defences.",
    "- ASR and RA count images whose class is not the trigger's goal. DER = (max(0, dASR) - max(0, dACC) + 1) / 2.",
    "- The threshold of a pruning is the largest that keeps the accuracy on held-out clean images within the budget.",
    "- The oracle columns choose the threshold by the test ASR, which no defence may: the mask of the same curve with the",
    "  lowest test ASR within the same budget of test accuracy. An oracle ASR above the defence's own says that the defence",
    "  lost more test accuracy than the budget, which its held-out images did not show.",
    "- Re-activated is the ASR after five epochs of fine-tuning on the clean images; with poisoned: on these and five with the",
    "  trigger and the label that it leads to.",
    "- A baseline defence stops after `passes` images a stage, so longer recipes are cut short (at their published length:",
    "  ANP 768,000, IMS over 2 million, SAU 600,000 on 500 images).",
)


def write_tables(folder: Path, rows: Sequence[Row], settings: dict[str, object]) -> None:
    """Write results.csv (one line a cell), results.md (means over seeds) and, where matplotlib is installed, the plots."""
    write_atomically(folder / "results.csv", as_csv(rows))
    timed = timed_alike(rows)
    write_atomically(folder / "results.md", as_markdown(timed, settings, write_plots(folder, timed)))


def timed_alike(rows: Sequence[Row]) -> list[Row]:
    """The rows; where cells ran on different machines, `seconds` stays with those of the machine that ran most of them."""
    machines = Counter(row["where"] for row in rows if "where" in row)  # a cell that failed names none
    usual = max(machines, key=lambda where: machines[where], default=None)
    untimed = ({name: value for name, value in row.items() if name != "seconds"} for row in rows)
    return [row if row.get("where", usual) == usual else other for row, other in zip(rows, untimed, strict=True)]


def as_csv(rows: Sequence[Row]) -> str:
    """One line a cell; what a cell does not have is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_markdown(rows: Sequence[Row], settings: dict[str, object], plots: Sequence[str] = ()) -> str:
    """Summary, one table a victim, false repairs, failures; mean and standard deviation over the seeds, in per cent."""
    done = [row for row in rows if "error" not in row]
    machines = list(dict.fromkeys(row["where"] for row in done if "where" in row))
    attacked = [row for row in done if row["attack"] != "none"]
    clean = [row for row in done if row["attack"] == "none"]
    lines = ["# Defences compared", "", _counted(rows)]
    if attacked:
        lines += ["", "## All attacks", "", *_summary(attacked)]
    lines += [f"\n![{Path(plot).stem}]({plot})" for plot in plots]
    for victim in dict.fromkeys(row["victim"] for row in attacked):
        lines += ["", *_victim([row for row in attacked if row["victim"] == victim])]
    if clean:
        lines += ["", "## False repairs: clean networks", "", *_clean(clean)]
    failures = [row for row in rows if "error" in row]
    if failures:
        lines += ["", "## Failed cells", ""]
        lines += [f"- {row['victim']}, {row['defence']}, seed {row['seed']}: {row['error']}" for row in failures]
    lines += ["", "## How it was measured", "", *MEANING, ""]
    lines += ["Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."]
    lines += [f"Measured on: {where}." for where in machines]
    lines += ["Seconds are of the machine that ran most cells."] if len(machines) > 1 else []
    return "\n".join(lines) + "\n"


def _counted(rows: Sequence[Row]) -> str:
    """One sentence that says what the tables hold."""
    counts = {name: len({row[name] for row in rows if name in row}) for name in ("victim", "defence", "seed")}
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items()]
    return f"{', '.join(parts)}: mean and standard deviation over the seeds (n), in per cent of the evaluation images."


def _summary(rows: Sequence[Row]) -> list[str]:
    """One line a defence over all attacked victims, best DER first; spread over victims and seeds."""
    columns = {
        "n": lambda group: str(len(group)),
        "lost ACC": lambda group: _spread([row["acc_before"] - row["acc"] for row in group]),
        "ASR": lambda group: _spread([row["asr"] for row in group]),
        "worst ASR": lambda group: f"{100 * max(row['asr'] for row in group):.1f}",
        "RA": lambda group: _spread([row["ra"] for row in group]),
        "DER": lambda group: _spread([row["der"] for row in group], 1, 3),
        "oracle ASR": lambda group: _spread(_values(group, "asr_oracle")),
        "re-activated": lambda group: _spread(_values(group, "asr_reactivated")),
        "with poisoned": lambda group: _spread(_values(group, "asr_poisoned")),
        "seconds": lambda group: _spread(_values(group, "seconds"), 1, 0),
    }
    groups = _groups(rows)
    order = sorted(groups, key=lambda name: -statistics.mean(row["der"] for row in groups[name]))
    return _table("defence", [(name, groups[name]) for name in order], columns)


def _victim(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    columns = {
        "n": lambda group: str(len(group)),
        "decision": lambda group: ", ".join(sorted({row["decision"] for row in group})),
        "ACC": lambda group: _spread([row["acc"] for row in group]),
        "ASR": lambda group: _spread([row["asr"] for row in group]),
        "without trigger": lambda group: _spread([row["asr_untriggered"] for row in group]),
        "RA": lambda group: _spread([row["ra"] for row in group]),
        "DER": lambda group: _spread([row["der"] for row in group], 1, 3),
        "oracle ACC": lambda group: _spread(_values(group, "acc_oracle")),
        "oracle ASR": lambda group: _spread(_values(group, "asr_oracle")),
        "re-activated": lambda group: _spread(_values(group, "asr_reactivated")),
        "with poisoned": lambda group: _spread(_values(group, "asr_poisoned")),
        "pruned": lambda group: _spread(_values(group, "pruned"), 1, 0),
        "evaluations": lambda group: _spread(_values(group, "evaluations"), 1, 0),
        "seconds": lambda group: _spread(_values(group, "seconds"), 1, 0),
    }
    before = [
        f"{name} {100 * first[key]:.1f}" for name, key in (("ACC", "acc_before"), ("ASR", "asr_before"), ("RA", "ra_before"))
    ]
    head = [
        f"## {first['victim']}",
        "",
        f"{first['attack']}, {first['arch']}, {first['data']}; before: {', '.join(before)}.",
        "",
    ]
    return head + _table("defence", list(_groups(rows).items()), columns)


def _clean(rows: Sequence[Row]) -> list[str]:
    """What each defence did to networks without a backdoor; the best answer is nothing."""
    left_alone = ("no-backdoor-evidence", "inconclusive", "nothing pruned", "not-repairable")
    columns = {
        "n": lambda group: str(len(group)),
        "changed": lambda group: f"{sum(row['decision'] not in left_alone for row in group)} of {len(group)}",
        "ACC before": lambda group: _spread([row["acc_before"] for row in group]),
        "ACC after": lambda group: _spread([row["acc"] for row in group]),
        "pruned": lambda group: _spread(_values(group, "pruned"), 1, 0),
        "seconds": lambda group: _spread(_values(group, "seconds"), 1, 0),
    }
    return _table("defence", list(_groups(rows).items()), columns)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["defence"] for row in rows)
    return {name: [row for row in rows if row["defence"] == name] for name in names}


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _table(head: str, groups: Sequence[tuple[str, list[Row]]], columns: dict[str, Callable[[list[Row]], str]]) -> list[str]:
    lines = [f"| {' | '.join((head, *columns))} |", "|---" * (1 + len(columns)) + "|"]
    return lines + [f"| {' | '.join((name, *(cell(group) for cell in columns.values())))} |" for name, group in groups]


def _spread(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """mean ± standard deviation; the mean alone of one value, - of none."""
    if not values:
        return "-"
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{spread}"
