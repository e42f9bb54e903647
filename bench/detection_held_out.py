"""The verdict on networks that are not in the zoo: `python bench/detection_held_out.py --victims DIR ... --data PATH`.

`--victims`: folders written by `onp.attack`; without them the embedded networks. Every network is scanned with every seed, each
another split of the clean images and another start of the triggers. Prints a line a scan, and how many backdoored and clean
networks get which decision. Writes bench/results/detection_held_out.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
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
from onp.detect.probability import learned_verdict, target_probabilities
from onp.detect.scan import scan
from onp.detect.targets import context_of
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
    parser.add_argument("--preset", default="default", choices=list(PRESETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "detection_held_out.json")
    options = parser.parse_args()
    verdict = learned_verdict()
    rows: list[dict[str, Any]] = []
    for card, victim, data in networks(options.victims, options.data):
        for seed in options.seeds:
            images = load_images(data)
            splits = split(images, seed)
            bn = bn_statistics(victim, joined(splits.build, splits.score))
            scores = scan(victim, splits, bn, DetectRun(PRESETS[options.preset].detect, seed))
            context = context_of(victim, bn, len(images))
            found = target_probabilities(scores, context, verdict)
            row: dict[str, Any] = card | {"preset": options.preset, "defence_seed": seed}
            row |= {"probability": round(found.backdoor, 4), "decision": verdict.decision(found.backdoor)}
            row |= {"predicted_target": found.predicted_target, "evidence": found.evidence[found.predicted_target]}
            row |= {"log_costs": {name: [round(value, 4) for value in values] for name, values in scores.log_costs.items()}}
            rows.append(row)
            print(card["name"], seed, f"{row['probability']:.3f} {row['decision']} class {row['predicted_target']}", flush=True)
    kinds = {
        "clean": [row for row in rows if row["target"] is None],
        "backdoored": [row for row in rows if row["target"] is not None],
    }
    summary: dict[str, Any] = {name: dict(Counter(row["decision"] for row in mine)) for name, mine in kinds.items()}
    summary["right_class"] = sum(row["predicted_target"] == row["target"] for row in kinds["backdoored"])
    print(json.dumps(summary))
    document = {"verdict": verdict.version, "summary": summary, "rows": rows, "hardware": hardware(), "versions": versions()}
    write_atomically(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
