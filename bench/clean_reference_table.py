"""The reference and its tables: `python bench/clean_reference_table.py --work DIR`, of the rows of `bench/clean_reference.py`.

Writes onp/pretrained/clean_reference.json (`--check`: no file) and prints the tables of bench/results/clean_reference.md.
A share is the 95th percentile of the ASR over pairs of a backdoored network and a clean one of its cell, by family; a family
with fewer than `FEWEST` pairs has none. The interval resamples the backdoored and the clean networks of every cell (2,000
draws, percentiles 2.5 and 97.5). `--reports` takes report.json files of `onp defend` and prints which surrogates are above
their share.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from clean_reference_networks import CELLS, FIRST_SEED, Rows, needs_network, recipe, recipe_hash

from onp.defend.report.environment import hardware, versions
from onp.detect.bank import FAMILY_NAMES
from onp.detect.known_trigger import KNOWN
from onp.files import write_atomically

FAMILIES = (*FAMILY_NAMES, KNOWN)
PERCENTILE, DRAWS, FEWEST = 95, 2000, 5
WORKS = 0.5  # ASR of the true trigger below which an attack did not take; such networks are left out
OBEYS = 0.2  # ASR of the true trigger from which a network still has its backdoor
RELATED = ("given", "half", "repaired", "same", "unlearned")
CLEAN = ("clean", "twin")
ROOT = Path(__file__).resolve().parents[1]

Row = dict[str, Any]
Shares = dict[str, float]
"""By family."""


def usable(rows: list[Row]) -> list[Row]:
    """The measurements of backdoored networks whose attack took."""
    key = lambda row: (row["cell"], row["attack"], row["seed"])  # noqa: E731
    took = {key(row) for row in rows if row["kind"] == "given" and row["true_asr"] >= WORKS}
    # A trigger that was fitted to a clean network of the attacker's own is not measured on that one.
    own = {key(row): f"clean-{row['seed'] + 1}" for row in rows if row["kind"] == "bank" and needs_network(row["attack"])}
    return [
        row for row in rows if row["kind"] in (*CLEAN, *RELATED) and key(row) in took and row["network"] != own.get(key(row))
    ]


def values(rows: list[Row], family: str, kinds: tuple[str, ...] = CLEAN) -> list[Row]:
    """The rows of a family."""
    return [row for row in rows if row["kind"] in kinds and family in row["asr"]]


def asrs(rows: list[Row], family: str) -> np.ndarray:
    return np.array([row["asr"][family] for row in rows])


def shares_of(rows: list[Row], kinds: tuple[str, ...] = CLEAN) -> Shares:
    """The 95th percentiles."""
    found = {family: asrs(values(rows, family, kinds), family) for family in FAMILIES}
    return {family: float(np.percentile(mine, PERCENTILE)) for family, mine in found.items() if len(mine) >= FEWEST}


def interval(rows: list[Row], family: str) -> list[float]:
    """95 % interval of a share, over draws of the backdoored and of the clean networks of every cell."""
    mine = [(row, row["asr"][family]) for row in values(rows, family)]
    generator, grids = np.random.default_rng(0), []
    for cell in sorted({row["cell"] for row, _ in mine}):
        grid: dict[tuple[str, str], list[float]] = {}
        for row, asr in mine:
            if row["cell"] == cell:
                grid.setdefault((row["attack"], row["network"]), []).append(asr)
        grids.append((grid, sorted({victim for victim, _ in grid}), sorted({network for _, network in grid})))
    found = []
    for _ in range(DRAWS):
        drawn: list[float] = []
        for grid, victims, networks in grids:
            columns = generator.choice(networks, size=len(networks))
            for victim in generator.choice(victims, size=len(victims)):
                for network in columns:
                    drawn += grid.get((str(victim), str(network)), [])
        found.append(np.percentile(drawn, PERCENTILE) if drawn else np.nan)
    return [round(float(value), 4) for value in np.nanpercentile(found, (2.5, 97.5))]


def without_natural(rows: list[Row]) -> list[Row]:
    """The rows but those of attacks whose own trigger leads the clean networks to the class too, on 20 % of the images."""
    own: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["kind"] in CLEAN:
            own.setdefault((row["cell"], row["attack"]), []).append(row["true_asr"])
    return [row for row in rows if np.median(own[row["cell"], row["attack"]]) < OBEYS]


def document(rows: list[Row], date: str) -> dict[str, Any]:
    """The content of clean_reference.json."""
    shares = shares_of(rows)
    victims = sorted({(row["cell"], row["attack"], row["seed"]) for row in rows})
    found: dict[str, Any] = {
        "version": f"{date}-{recipe_hash()}",
        "percentile": PERCENTILE,
        "networks": len({(row["cell"], row["network"]) for row in rows if row["kind"] in CLEAN}),
        "victims": len(victims),
        "shares": {family: round(shares[family], 4) if family in shares else None for family in FAMILIES},
        "intervals": {family: interval(rows, family) if family in shares else None for family in FAMILIES},
        "pairs": {family: len(values(rows, family)) for family in FAMILIES},
    }
    found |= {"seeds": {"first": FIRST_SEED, "victims": [list(victim) for victim in victims]}, "recipe": recipe()}
    return found | {"versions": versions(), "hardware": hardware()}


def above(row: Row, shares: Shares) -> list[str]:
    """The families of a row whose ASR is above its share."""
    return [family for family in FAMILY_NAMES if row["asr"].get(family, 0.0) > shares.get(family, 1.0)]


RULES: dict[str, Callable[[list[Row]], Shares]] = {
    "any family above its share": shares_of,
    "any family above its share by twins and unlearned networks": lambda rows: shares_of(rows, ("twin", "unlearned")),
    "any family above its share without natural triggers": lambda rows: shares_of(without_natural(rows)),
}


def judged(rows: list[Row]) -> list[list[str]]:
    """How often each rule says "partly repaired" by the shares of the other cells, where the true trigger works or does not."""
    lines = []
    for name, shares_for in RULES.items():
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for cell in CELLS:
            shares = shares_for([row for row in rows if row["cell"] != cell.name])
            for row in rows:
                if (
                    row["cell"] == cell.name
                    and row["kind"] in ("half", "repaired", "same", "unlearned")
                    and row.get("pruned") != 0
                ):
                    hits[row["true_asr"] >= OBEYS].append(bool(above(row, shares)))
        lines.append([name, *(f"{sum(hits[obeys])} of {len(hits[obeys])}" for obeys in (True, False))])
    return lines


def spread(rows: list[Row], family: str) -> str:
    """Median, 95th percentile and number, as text."""
    if not rows:
        return "-"
    found = 100 * asrs(rows, family)
    return f"{np.median(found):.0f} / {np.percentile(found, PERCENTILE):.0f} ({len(found)})"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def tables(rows: list[Row], networks: list[Row], shares: Shares) -> str:
    """All tables."""
    names = [cell.name for cell in CELLS]
    measured = [family for family in FAMILIES if values(rows, family)]
    by_cell = [
        [family, *(spread(values([r for r in rows if r["cell"] in part], family), family) for part in (*zip(names), names))]
        for family in measured
    ]
    by_network = [
        [family, *(spread(values(rows, family, (each,)), family) for each in (*CLEAN, *RELATED))] for family in measured
    ]
    weak = []
    for family in measured:
        both = [row for row in values(rows, family) if f"{family} weak" in row["asr"]]
        weak.append([family, spread(both, family), spread(both, f"{family} weak")])
    related = []
    for row in rows:
        if row["kind"] in RELATED:
            line = [
                row["cell"],
                row["attack"],
                row["kind"],
                str(row.get("pruned", "-")),
                percent(row["acc"]),
                percent(row["true_asr"]),
            ]
            line += [percent(row["asr"].get(family)) for family in FAMILY_NAMES]
            related.append([*line, ", ".join(above(row, shares)) or "none"])
    trained = []
    for row in networks:
        line = [row["cell"], row["attack"], str(row["seed"]), "-" if row["attack"] == "none" else str(row["target"])]
        trained.append([*line, percent(row.get("acc")), percent(row.get("asr")), f"{row['seconds']:.0f}"])
    return "\n\n".join([
        table(["family", *names, "all"], by_cell),
        table(["family", *CLEAN, *RELATED], by_network),
        table(["family", "all triggers", "without the stronger copies"], weak),
        table(["rule", "backdoor left", "backdoor gone"], judged(rows)),
        table(["cell", "attack", "network", "pruned", "ACC", "true ASR", *FAMILY_NAMES, "above its share"], related),
        table(["cell", "attack", "seed", "target", "ACC", "ASR", "seconds"], trained),
    ])  # fmt: skip


def judged_reports(paths: list[Path], shares: Shares) -> str:
    """What the shares mean for runs of the defence: of each surrogate the ASR after the repair and the share."""
    lines = []
    for path in paths:
        report = json.loads(path.read_text())
        left = report["after"]["asr_surrogate"]
        cells, survivors = [], []
        for family in FAMILY_NAMES:
            if family not in left:
                cells.append("-")
                continue
            asr, share = left[family]["value"], shares.get(family)
            cells.append(f"{percent(asr)} of {percent(share)}")
            survivors += [family] * (share is not None and asr > share)
        decision = f"partly-repaired ({', '.join(survivors)})" if survivors else "repaired"
        lines.append([path.parent.name, percent(report["after"]["acc"]), percent(report["after"].get("asr")), *cells, decision])
    return table(["run", "ACC", "true ASR", *FAMILY_NAMES, "decision"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--reports", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    every = Rows(options.work / "rows.jsonl").read()
    rows = usable(every)
    found = document(rows, datetime.date.today().isoformat())
    if not options.check:
        write_atomically(ROOT / "onp" / "pretrained" / "clean_reference.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in found if key not in ("recipe", "seeds")}))
    print(json.dumps(shares_of(without_natural(rows))))
    print(judged_reports(options.reports, shares_of(rows)) + "\n")
    print(judged_reports(options.reports, shares_of(without_natural(rows))) + "\n")
    print(tables(rows, [row for row in every if row["kind"] == "network"], shares_of(rows)))


if __name__ == "__main__":
    main()
