"""Whole repairs of the backdoored networks of a zoo, pruned and healed: `python bench/repair_zoo.py ZOO [--workers N]`.

Each network is scanned and repaired as `onp defend` does it, from one split of 500 clean images; where the verdict does not
find the backdoor, its target is given, so that repairs are judged apart from the verdict. True trigger and test images
are used for measuring alone. Networks of which bench/dossiers holds search dossiers are left out with `--first`. Rows go into
bench/results/repair_zoo.json as they are finished; `--table` prints means over networks with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onp.attack.triggers import Trigger
from onp.data.images import ImageSet, split
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.healing import repaired_network
from onp.defend.report.environment import hardware, versions
from onp.defend.run import Run
from onp.detect.bn_statistics import bn_statistics
from onp.detect.targets import Detection, detect_targets
from onp.engine.metrics import accuracy, attack_success, defence_effectiveness, predictions, robust_accuracy
from onp.files import write_atomically
from onp.model.victim import Victim
from onp.numerics import strict_float32
from onp.pool import Workers, run_all
from onp.zoo.entry import Entry, read_zoo

RESULTS = Path(__file__).parent / "results" / "repair_zoo.json"


@dataclass(frozen=True, eq=False)
class KnownTarget(Detection):
    """Detection that is told the target class."""

    target: int = 0

    @property
    def targets(self) -> tuple[int, ...]:
        return (self.target,)


@torch.no_grad()
def measured(network: Victim, images: ImageSet, trigger: Trigger, target: int) -> dict[str, float]:
    """ACC, that of the target class, ASR and RA on test images, shares."""
    pixels, labels = images.pixels(), images.labels
    clean, attacked = (predictions(network.model, network.normalisation(each)) for each in (pixels, trigger(pixels)))
    members = labels == target
    return {
        "acc": accuracy(labels, clean).value,
        "acc_target": accuracy(labels[members], clean[members]).value,
        "asr": attack_success(labels, attacked, target).value,
        "ra": robust_accuracy(labels, attacked, target).value,
        "asr_clean": attack_success(labels, clean, target).value,
    }


@strict_float32()
def row_of(entry: Entry) -> dict[str, Any]:
    """The repair of one network."""
    torch.set_num_threads(1)
    started, card, victim = time.process_time(), entry.card, entry.victim()
    case, run = Case(victim, split(entry.clean(0), 0)), Run.of(DefendConfig(quiet=True))
    bn = bn_statistics(victim, case.searched)
    found = detect_targets(victim, case.clean, bn, run.detecting())
    works = [
        (trigger, target) for (trigger, target), each in zip(entry.triggers(), card["backdoors"], strict=True) if each["works"]
    ]
    convicted = any(target in found.targets for _, target in works)
    trigger, target = next(((trigger, target) for trigger, target in works if target in found.targets), works[0])
    detection = found if convicted else KnownTarget(found.passes, found.verdict, found.pruned, target)
    result = repaired_network(case, detection, bn, run)
    assert result.repairs is not None
    row: dict[str, Any] = {"network": entry.index, "attack": trigger.name, "arch": card["arch"].split(",")[0]}
    row |= {"family": next(each["family"] for each in card["backdoors"] if each["works"]), "data": card["training"]["data"]}
    row |= {"convicted": convicted, "works": result.repairs.works, "healed": result.pruned is not None}
    row |= {"units": victim.units, "units_pruned": int((~result.repairs.mask.keep).sum())}
    networks = {"before": victim, "pruned": result.pruned or result.network, "after": result.network}
    test = entry.test()
    row |= {side: measured(network, test, trigger, target) for side, network in networks.items()}
    return row | {"seconds": time.process_time() - started}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over networks in per cent, with 95 % intervals of 2,000 bootstraps over networks."""
    generator = np.random.default_rng(0)
    lines = [
        "| networks | n | repairs that work | lost ACC, points (worst) | in the target class | ASR before | pruned | after "
        "(median) | RA after | DER |",
        "|---" * 10 + "|",
    ]

    def mean(values: list[float], digits: int = 1) -> str:
        drawn = generator.choice(np.array(values), (2000, len(values))).mean(1)
        low, high = np.percentile(drawn, (2.5, 97.5))
        return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    groups = {"all": rows, "found by the verdict": [row for row in rows if row["convicted"]]}
    groups |= {"whose repair works": [row for row in rows if row["works"]]}
    groups |= {family: [row for row in rows if row["family"] == family] for family in sorted({row["family"] for row in rows})}
    for name, own in groups.items():
        lost, in_target = ([100 * (row["before"][key] - row["after"][key]) for row in own] for key in ("acc", "acc_target"))
        asr = {side: [100 * row[side]["asr"] for row in own] for side in ("before", "pruned", "after")}
        der = [
            defence_effectiveness(row["before"]["acc"], row["after"]["acc"], row["before"]["asr"], row["after"]["asr"])
            for row in own
        ]
        cells = [name, str(len(own)), str(sum(row["works"] for row in own)), f"{mean(lost, 2)} ({max(lost):.1f})"]
        cells += [
            mean(in_target),
            mean(asr["before"]),
            mean(asr["pruned"]),
            f"{mean(asr['after'])} ({np.median(asr['after']):.1f})",
        ]
        lines.append("| " + " | ".join([*cells, mean([100 * row["after"]["ra"] for row in own]), mean(der, 3)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", nargs="?", default="")
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    options = parser.parse_args()
    document = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if options.table:
        print(table(document["rows"]))
        return
    done = {row["network"] for row in document["rows"]}
    entries = [entry for entry in read_zoo(options.zoo) if entry.index >= options.first and entry.index not in done]
    entries = [entry for entry in entries if entry.usable and any(each["works"] for each in entry.card["backdoors"])]
    # Small networks first: what is there when the time is up covers the most.
    entries.sort(key=lambda entry: (entry.folder / "model.safetensors").stat().st_size)
    for entry, row in run_all(row_of, entries, Workers(processes=options.workers)):
        if isinstance(row, Exception):
            print(f"network {entry.index}: {type(row).__name__}: {row}", flush=True)
            continue
        document["rows"].append(row)
        document |= {"hardware": hardware(), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
        write_atomically(options.out, json.dumps(document) + "\n")
        shown = {
            side: {key: round(100 * row[side][key], 1) for key in ("acc", "asr", "ra")}
            for side in ("before", "pruned", "after")
        }
        print(
            f"network {entry.index}: {row['attack']} {row['convicted']} {row['works']} {shown} {row['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
