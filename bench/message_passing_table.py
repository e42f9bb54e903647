"""Prints bench/results/message_passing.json as Markdown: `python bench/message_passing_table.py --features 64`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = """| op | nodes x degree x features | K | pass | us (p5 to p95, n) | floor | times faster than |
|---|---|---|---|---|---|---|"""


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
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).parent / "results" / "message_passing.json"
    parser.add_argument("--results", type=Path, default=results)
    for size in ("nodes", "degrees", "features", "copies"):
        parser.add_argument(f"--{size}", type=int, nargs="+", help="only these")
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
    print(HEAD)
    for row in sorted(rows, key=lambda r: (r["job"], r["copies"], r["nodes"], r["degree"], r["features"], r["pass"])):
        print(line(row))


if __name__ == "__main__":
    main()
