"""Verification of repairs: `python bench/verify.py --presets fast --seeds 0 1 2`.

Every embedded victim is repaired with every preset and seed. Rows of the table: the repaired networks under verify and under a
plain scan; the same with half of their pruned units restored, without a mask beside them; the networks as they were, and the
clean one. Every question is asked with the preset and seed of the repair. The trigger and the 2,000 evaluation images are used
for measuring only. `--victims` takes folders written by `onp.attack` in place of the embedded networks, with `--data` and
`--eval-data`. Repairs are kept in `--folder` and not made twice. Writes bench/results/verify.json and prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from onp.attack.triggers import load_trigger
from onp.compare.victims import read_card
from onp.data.images import load_images
from onp.data.normalisation import Normalisation
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.demos import DEMOS
from onp.defend.evaluation import find_target
from onp.defend.report.environment import hardware, versions
from onp.defend.resolve import resolve
from onp.engine.metrics import predictions
from onp.files import write_atomically
from onp.model.mask import Mask, load_mask
from onp.model.prune import prune, save_checkpoint
from onp.model.victim import load_victim

DECISIONS = ("backdoor-evidence", "inconclusive", "no-backdoor-evidence")


def cases(options: argparse.Namespace) -> list[tuple[str, DefendConfig]]:
    """Name and options of every network as it was given."""
    if not options.victims:
        return [(name, resolve(DefendConfig(demo=name))[0]) for name in options.demos]
    found = []
    for folder in map(Path, options.victims):
        card, trigger = read_card(folder), folder / "trigger.safetensors"
        config = DefendConfig(model=str(folder / "model.safetensors"), arch=card["arch"], norm=card["norm"], data=options.data)
        more = {"eval_data": options.eval_data, "eval_trigger": str(trigger) if trigger.exists() else None}
        found.append((folder.name, dataclasses.replace(config, **more)))
    return found


def repaired(config: DefendConfig, folder: Path) -> Path | None:
    """The checkpoint of the repair, made where it is not there yet; None where nothing was repaired."""
    checkpoint = folder / Path(str(config.model)).name
    if not (folder / "report.json").exists():
        defend(dataclasses.replace(config, demo=None, out=str(folder), quiet=True))
    return checkpoint if checkpoint.exists() else None


def half_restored(config: DefendConfig, folder: Path) -> Path:
    """A checkpoint in which every second pruned unit, drawn at random, is as it was."""
    shape = load_images(str(config.data)).images.shape[1:]
    victim = load_victim(str(config.model), config.arch, Normalisation.parse(str(config.norm)), shape)
    keep = load_mask(folder / "mask.json", victim).keep.clone()
    pruned = (~keep).nonzero()[:, 0]
    keep[pruned[torch.randperm(len(pruned), generator=torch.Generator().manual_seed(config.seed))[::2]]] = True
    path = folder / "half" / Path(str(config.model)).name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    save_checkpoint(prune(victim, Mask.of(victim, keep)), path)
    return path


def ask(name: str, state: str, original: DefendConfig, config: DefendConfig, task: str) -> dict[str, Any]:
    """One run of `task`, verify or scan, on a network that was made from `original`."""
    asked = dataclasses.replace(config, demo=None, quiet=True, verify=task == "verify", repair=False)
    report = defend(asked).report
    assert report.detection is not None
    detection, target = report.detection, report.detection.ranking[0]
    evidence = {detector: round(value, 2) for detector, value in detection.evidence_of(target).items()}
    row = {"network": name, "state": state, "task": task, "preset": config.preset, "seed": config.seed}
    row |= {"decision": report.decision, "probability": detection.probability, "class": target, "evidence": evidence}
    return row | reached(asked, original) | {"notes": report.notes}


def reached(config: DefendConfig, original: DefendConfig) -> dict[str, float]:
    """Shares of the triggered evaluation images that get the attacker's class (`asr`) and their own (`ra`).

    Empty without a trigger. The attacker's class is read from the original: a repaired network may lead the images to another.
    """
    if config.eval_trigger is None:
        return {}
    images = load_images(str(config.eval_data))
    victims = [load_victim(str(each.model), each.arch, Normalisation.parse(str(each.norm)), images.images.shape[1:])
               for each in (original, config)]  # fmt: skip
    triggered = load_trigger(config.eval_trigger)(images.pixels())
    target = find_target(victims[0], images.labels, triggered)
    others = images.labels != target
    predicted = predictions(victims[1].model, victims[1].normalisation(triggered)).cpu()[others]
    right = predicted == images.labels[others]
    return {"asr": float((predicted == target).float().mean()), "ra": float(right.float().mean())}


def table(rows: list[dict[str, Any]]) -> str:
    """Decisions and probabilities by network, state, task and preset, as Markdown."""
    heads = (
        "network",
        "state",
        "asked",
        "preset",
        "n",
        "ASR, %",
        "RA, %",
        "evidence",
        "inconclusive",
        "none",
        "probability of a backdoor, %",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    keys = list(dict.fromkeys((row["network"], row["state"], row["task"], row["preset"]) for row in rows))
    for key in keys:
        group = [row for row in rows if (row["network"], row["state"], row["task"], row["preset"]) == key]
        decided = [sum(row["decision"] == decision for row in group) for decision in DECISIONS]
        asr, ra = (", ".join(f"{100 * row[name]:.1f}" for row in group if name in row) or "-" for name in ("asr", "ra"))
        probabilities = [f"{100 * row['probability']:.1f}" for row in group]
        cells = [*key, str(len(group)), asr, ra, *map(str, decided), ", ".join(probabilities)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", nargs="+", default=list(DEMOS), choices=list(DEMOS))
    parser.add_argument("--victims", nargs="+", default=[])
    parser.add_argument("--data")
    parser.add_argument("--eval-data")
    parser.add_argument("--presets", nargs="+", default=["fast", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("verify"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verify.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(*asked: Any) -> None:
        rows.append(ask(*asked))
        print(json.dumps({name: value for name, value in rows[-1].items() if name != "notes"}), flush=True)

    for preset, seed in itertools.product(options.presets, options.seeds):
        for name, given in cases(options):
            config = dataclasses.replace(given, preset=preset, seed=seed)
            add(name, "original", given, config, "verify")
            folder = options.folder / f"{name}-{preset}-{seed}"
            if config.eval_trigger is None or (checkpoint := repaired(config, folder)) is None:
                continue
            again = dataclasses.replace(config, model=str(checkpoint))
            add(name, "repaired", given, again, "verify")
            add(name, "repaired", given, again, "scan")
            add(name, "half restored", given, dataclasses.replace(config, model=str(half_restored(config, folder))), "verify")
    result = {"rows": rows, "hardware": hardware(), "versions": versions()}
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
