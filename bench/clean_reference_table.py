"""The reference and its tables: `python bench/clean_reference_table.py --work DIR`, of the rows of `bench/clean_reference.py`.

Writes onp/pretrained/clean_reference.json (`--check`: no file) and prints the tables of bench/results/clean_reference.md.
The share of a family is the 95th percentile of the ASR over all pairs of a backdoored network and a clean one of its cell.
The interval resamples the clean networks of every cell, with all their pairs (2,000 draws, percentiles 2.5 and 97.5).
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
from clean_reference_networks import CELLS, FIRST_SEED, Rows, recipe, recipe_hash

from onp.defend.report.environment import hardware, versions
from onp.detect.bank import FAMILY_NAMES
from onp.detect.known_trigger import KNOWN
from onp.files import write_atomically

FAMILIES = (*FAMILY_NAMES, KNOWN)
PERCENTILE, DRAWS = 95, 2000
WORKS = 0.5  # ASR of the true trigger below which an attack did not take; such networks are left out
KINDS = ("given", "half", "repaired", "same", "unlearned")
ROOT = Path(__file__).resolve().parents[1]

Pairs = list[tuple[str, str, float]]
"""Cell, clean network and ASR of each pair."""


def pairs_of(rows: list[dict[str, Any]], family: str, kinds: tuple[str, ...] = ("clean", "twin")) -> Pairs:
    """All measured pairs of a family."""
    return [(row["cell"], row["network"], row["asr"][family]) for row in rows if row["kind"] in kinds and family in row["asr"]]


def percentile(pairs: Pairs) -> float | None:
    """The 95th percentile; None without pairs."""
    return float(np.percentile([value for _, _, value in pairs], PERCENTILE)) if pairs else None


def interval(pairs: Pairs) -> list[float] | None:
    """95 % interval of the percentile, over draws of the clean networks of each cell."""
    if not pairs:
        return None
    generator, by_network = np.random.default_rng(0), {}
    for cell, network, value in pairs:
        by_network.setdefault(cell, {}).setdefault(network, []).append(value)
    found = []
    for _ in range(DRAWS):
        drawn: list[float] = []
        for networks in by_network.values():
            groups = list(networks.values())
            for index in generator.integers(len(groups), size=len(groups)):
                drawn += groups[index]
        found.append(np.percentile(drawn, PERCENTILE))
    return [round(float(value), 4) for value in np.percentile(found, (2.5, 97.5))]


def usable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measurements of backdoored networks whose attack took."""
    took = {(row["cell"], row["attack"], row["seed"]) for row in rows if row["kind"] == "given" and row["true_asr"] >= WORKS}
    return [row for row in rows if (row["cell"], row["attack"], row["seed"]) in took and row["kind"] != "network"]


def document(rows: list[dict[str, Any]], date: str) -> dict[str, Any]:
    """The content of clean_reference.json."""
    every = {family: pairs_of(rows, family) for family in FAMILIES}
    clean = {(row["cell"], row["network"]) for row in rows if row["kind"] in ("clean", "twin")}
    victims = sorted({(row["cell"], row["attack"], row["seed"]) for row in rows})
    shares = {family: percentile(pairs) for family, pairs in every.items()}
    return {
        "version": f"{date}-{recipe_hash()}",
        "percentile": PERCENTILE,
        "networks": len(clean),
        "victims": len(victims),
        "shares": {family: None if share is None else round(share, 4) for family, share in shares.items()},
        "intervals": {family: interval(pairs) for family, pairs in every.items()},
        "pairs": {family: len(pairs) for family, pairs in every.items()},
        "seeds": {"first": FIRST_SEED, "victims": [list(victim) for victim in victims]},
        "recipe": recipe(),
        "versions": versions(),
        "hardware": hardware(),
    }


def cell_of(pairs: Pairs) -> str:
    """Median, 95th percentile and number of pairs, as text."""
    if not pairs:
        return "-"
    values = [100 * value for _, _, value in pairs]
    return f"{np.median(values):.0f} / {np.percentile(values, PERCENTILE):.0f} ({len(values)})"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def above(row: dict[str, Any], shares: dict[str, float | None]) -> list[str]:
    """The families of a row whose ASR is above the reference; the true trigger is none of them."""
    bars = {family: shares.get(family) for family in row["asr"] if family != KNOWN}
    return [family for family, bar in bars.items() if bar is not None and row["asr"][family] > bar]


def tables(rows: list[dict[str, Any]], networks: list[dict[str, Any]], shares: dict[str, float | None]) -> str:
    """All tables."""
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}"  # noqa: E731
    families = [
        [family, *(cell_of([p for p in pairs_of(rows, family) if p[0] == cell.name]) for cell in CELLS)] for family in FAMILIES
    ]
    parts = [table(["family", *(cell.name for cell in CELLS)], families)]
    kinds = [(name, (name,)) for name in ("clean", "twin", *KINDS)]
    parts.append(
        table(
            ["family", *(name for name, _ in kinds)],
            [[f, *(cell_of(pairs_of(rows, f, k)) for _, k in kinds)] for f in FAMILIES],
        )
    )
    left = []
    for cell in CELLS:
        rest, mine = [r for r in rows if r["cell"] != cell.name], [r for r in rows if r["cell"] == cell.name]
        line = [cell.name]
        for family in FAMILIES:
            bar, values = percentile(pairs_of(rest, family)), [value for _, _, value in pairs_of(mine, family)]
            line.append("-" if bar is None or not values else f"{100 * np.mean(np.array(values) > bar):.0f} % of {len(values)}")
        left.append(line)
    parts.append(table(["cell left out", *FAMILIES], left))
    parts.append(table(
        ["cell", "attack", "network", "ACC", "ASR, true trigger", *FAMILY_NAMES, "above the reference"],
        [
            [r["cell"], r["attack"], r["kind"], percent(r["acc"]), percent(r["true_asr"])]
            + [percent(r["asr"].get(family)) for family in FAMILY_NAMES] + [", ".join(above(r, shares)) or "none"]
            for r in rows if r["kind"] in KINDS
        ],
    ))  # fmt: skip
    parts.append(table(
        ["cell", "network", "seed", "target", "ACC", "ASR", "seconds"],
        [
            [
                *(r["cell"], r["attack"], str(r["seed"]), "-" if r["attack"] == "none" else str(r["target"])),
                *(percent(r.get("acc")), percent(r.get("asr")), f"{r['seconds']:.0f}"),
            ]
            for r in networks
        ],
    ))  # fmt: skip
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    every = Rows(options.work / "rows.jsonl").read()
    rows = usable(every)
    found = document(rows, datetime.date.today().isoformat())
    if not options.check:
        write_atomically(ROOT / "onp" / "pretrained" / "clean_reference.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("version", "networks", "victims", "shares", "intervals", "pairs")}, indent=1))
    print(tables(rows, [row for row in every if row["kind"] == "network"], found["shares"]))


if __name__ == "__main__":
    main()
