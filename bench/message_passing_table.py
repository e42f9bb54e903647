"""Prints bench/results/message_passing.json as Markdown: `python bench/message_passing_table.py --features 64`.

`--summary`: a line per op, number of nodes and copies, how many times faster than the best of the others, from the least
to the most of all degrees and features, and the size and peer of the least.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = """| op | nodes x degree x features | K | pass | us (p5 to p95, n) | floor | times faster than |
|---|---|---|---|---|---|---|"""


SUMMARY_HEAD = """| op | nodes | K | forward | forward+backward |
|---|---|---|---|---|"""


def ratio(row: dict[str, Any]) -> tuple[float, str] | None:
    """How many times faster than the best of the others, and which that is where; None where nothing else was measured."""
    cells = {name: cell["median_us"] for name, cell in row.get("us", {}).items() if "median_us" in cell}
    ours = cells.pop("onp", None)
    if ours is None or not cells:
        return None
    best = min(cells, key=cells.__getitem__)
    return cells[best] / ours, f"{row['degree']} x {row['features']}, {best.removesuffix(', a loop')}"


def summary(rows: list[dict[str, Any]]) -> str:
    """One line of rows that differ in pass, degree and features."""
    cells = []
    for which in ("forward", "forward+backward"):
        found = [ratio(row) for row in rows if row["pass"] == which]
        known = sorted(each for each in found if each is not None)
        reach = f"{known[0][0]:.1f} to {known[-1][0]:.1f}" if len(known) > 1 else f"{known[0][0]:.1f}" if known else ""
        cells.append(f"{reach}, n = {len(known)} ({known[0][1]})" if known else "")
    return f"| {rows[0]['job']} | {rows[0]['nodes']:,} | {rows[0]['copies']} | {' | '.join(cells)} |"


def line(row: dict[str, Any]) -> str:
    """One row; a peer that was not measured comes with the reason."""
    size = f"{row['nodes']} x {row['degree']} x {row['features']}"
    start = f"| {row['job']} | {size} | {row['copies']} | {row['pass']} |"
    if "us" not in row:
        return f"{start} | | {row['skipped']} |"
    cells = dict(row["us"])
    ours = cells.pop("onp")
    if "median_us" not in ours:
        return f"{start} | | {ours['skipped']} |"
    times = f"{ours['median_us']:.0f} ({ours['p5_us']:.0f} to {ours['p95_us']:.0f}, {ours['n']})"
    floor = f"{row['floor_us']:.0f}" if "floor_us" in row else ""
    ratios = (
        f"{name}: {cell['median_us'] / ours['median_us']:.1f}" if "median_us" in cell else f"{name}: {cell['skipped']}"
        for name, cell in cells.items()
    )
    return f"{start} {times} | {floor} | {', '.join(ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).parent / "results" / "message_passing.json"
    parser.add_argument("--results", type=Path, default=results)
    for size in ("nodes", "degrees", "features", "copies"):
        parser.add_argument(f"--{size}", type=int, nargs="+", help="only these")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    wanted = {
        "nodes": options.nodes,
        "degree": options.degrees,
        "features": options.features,
        "copies": options.copies,
    }
    rows = [
        row
        for row in json.loads(options.results.read_text())["rows"]
        if all(values is None or row[key] in values for key, values in wanted.items())
    ]
    if options.summary:
        print(SUMMARY_HEAD)
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda r: (r["job"], r["copies"], r["nodes"])):
            groups.setdefault((row["job"], row["copies"], row["nodes"]), []).append(row)
        for group in groups.values():
            print(summary(group))
        return
    print(HEAD)
    for row in sorted(rows, key=lambda r: (r["job"], r["copies"], r["nodes"], r["degree"], r["features"], r["pass"])):
        print(line(row))


if __name__ == "__main__":
    main()
