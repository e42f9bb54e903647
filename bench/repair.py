"""The table of repairs: `python bench/repair.py --seeds 0 1 2` runs the whole defence on every embedded victim.

Writes bench/results/repair.json and prints the table as Markdown. The trigger and the 2,000 evaluation images are used for
measuring only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.demos import DEMOS
from onp.defend.report.environment import hardware, versions
from onp.files import write_atomically


def measure(name: str, seed: int, preset: str) -> dict[str, object]:
    """One run; shares of the evaluation images."""
    report = defend(DefendConfig(demo=name, seed=seed, preset=preset)).report
    row: dict[str, object] = {"demo": name, "seed": seed, "decision": report.decision, "target": report.target_class}
    for side, figures in (("before", report.before), ("pruned", report.pruning), ("after", report.after)):
        if figures is None:
            continue
        row[f"acc_{side}"] = figures.acc.value
        if figures.asr is not None and figures.ra is not None:
            row[f"asr_{side}"], row[f"ra_{side}"] = figures.asr.value, figures.ra.value
        if figures.asr_clean is not None:
            row[f"asr_clean_{side}"] = figures.asr_clean.value
    assert report.detection is not None
    row |= {"der": report.der, "pruned": report.pruned_count, "units": report.units}
    row |= {"probability": report.detection.probability}
    return row | {"seconds": report.budget.wall_seconds, "evaluations": report.budget.evaluations}


def table(rows: list[dict[str, object]]) -> str:
    """Mean and range over seeds, in per cent, as Markdown."""

    def cell(group: list[dict[str, object]], key: str) -> str:
        values = [100 * float(str(row[key])) for row in group if key in row]
        if not values:
            return "-"
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    shares = ("acc_before", "acc_pruned", "acc_after", "asr_before", "asr_pruned", "asr_after", "ra_pruned", "ra_after")
    heads = ["victim", "n", "decision", "ACC before", "pruned", "healed", "ASR before", "pruned", "healed"]
    heads += ["RA pruned", "healed", "DER", "units pruned", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in DEMOS:
        group = [row for row in rows if row["demo"] == name]
        if not group:
            continue
        decisions = ", ".join(sorted({str(row["decision"]) for row in group}))
        ders = [float(str(row["der"])) for row in group if row["der"] is not None]
        pruned, seconds = ([float(str(row[key])) for row in group] for key in ("pruned", "seconds"))
        cells = [name, str(len(group)), decisions]
        cells += [cell(group, key) for key in shares]
        cells += [f"{statistics.mean(ders):.3f}" if ders else "-", f"{statistics.mean(pruned):.0f} of {group[0]['units']}"]
        lines.append("| " + " | ".join([*cells, f"{statistics.mean(seconds):.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--demos", nargs="+", default=list(DEMOS), choices=list(DEMOS))
    parser.add_argument("--preset", default="default")
    options = parser.parse_args()
    rows = []
    for name in options.demos:
        for seed in options.seeds:
            rows.append(measure(name, seed, options.preset))
            print(json.dumps(rows[-1]), flush=True)
    result = {"preset": options.preset, "rows": rows, "hardware": hardware(), "versions": versions()}
    write_atomically(Path(__file__).parent / "results" / "repair.json", json.dumps(result, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
