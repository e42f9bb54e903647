"""Detection scores of clean and backdoored networks: `python bench/detection.py --victims DIR ... --data PATH`.

`--victims`: folders written by `onp.attack`; without them the embedded networks. Every network is scored once, without a second
pass, with every preset and seed, each seed another split of the clean images and another start of the triggers. Prints a line a
scan and, for each preset, how many clean scans reach the threshold and how many backdoored ones reach it for the right class.
Writes bench/results/detection.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from onp.compare.victims import read_card
from onp.data.images import joined, load_images, split
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, DEMOS, NORM, demo
from onp.defend.presets import PRESETS
from onp.defend.report.environment import hardware, versions
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectRun
from onp.detect.scan import scan
from onp.files import write_atomically
from onp.model.victim import Victim, load_victim


def networks(folders: list[str], data: str | None) -> list[tuple[dict[str, Any], Victim, str]]:
    """The card, the network and the clean images of each."""
    if not folders:
        files = {name: demo(name) for name in DEMOS}
        target = {name: None if each.trigger is None else 0 for name, each in files.items()}
        return [
            (
                {"name": name, "arch": ARCH, "attack": "none" if target[name] is None else name, "target": target[name]},
                load_victim(each.model, ARCH, Normalisation.parse(NORM), (1, 28, 28)),
                str(each.clean),
            )
            for name, each in files.items()
        ]
    assert data is not None, "--victims needs --data, clean images that they were not trained on"
    channels, height, width = load_images(data).images.shape[1:]
    found = []
    for folder in map(Path, folders):
        card = read_card(folder)
        norm = Normalisation.parse(card["norm"])
        victim = load_victim(folder / "model.safetensors", card["arch"], norm, (channels, height, width))
        names = ("attack", "arch", "seed", "epochs", "acc", "asr")
        target = None if card["attack"] == "none" else card["target"]
        found.append(({"name": folder.name, "target": target} | {name: card.get(name) for name in names}, victim, data))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", nargs="+", default=[])
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=["fast", "default"], choices=list(PRESETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "detection.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for card, victim, data in networks(options.victims, options.data):
        for preset in options.presets:
            for seed in options.seeds:
                splits = split(load_images(data), seed)
                bn = bn_statistics(victim, joined(splits.build, splits.score))
                scores = scan(victim, splits, bn, DetectRun(PRESETS[preset].detect, seed))
                row: dict[str, Any] = card | {"preset": preset, "defence_seed": seed}
                row |= {"score": max(scores.score), "predicted_target": scores.predicted_target}
                row |= {"anomaly_index": {name: [round(k, 2) for k in index] for name, index in scores.anomaly_index.items()}}
                rows.append(row)
                print(card["name"], preset, seed, f"score {row['score']:.2f} class {row['predicted_target']}", flush=True)
    summary = {}
    for preset in options.presets:
        threshold = PRESETS[preset].detect.threshold
        mine = [row for row in rows if row["preset"] == preset]
        clean = [row["score"] for row in mine if row["target"] is None]
        hit = [row["score"] if row["predicted_target"] == row["target"] else 0.0 for row in mine if row["target"] is not None]
        summary[preset] = {"threshold": threshold, "clean": len(clean), "clean_flagged": sum(s >= threshold for s in clean)}
        summary[preset] |= {"backdoored": len(hit), "backdoored_found": sum(s >= threshold for s in hit)}
        summary[preset] |= {"highest_clean": max(clean, default=None), "lowest_backdoored": min(hit, default=None)}
        print(preset, json.dumps(summary[preset]))
    document = {"summary": summary, "rows": rows, "hardware": hardware(), "versions": versions()}
    write_atomically(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
