"""The verdict on networks that are not in the zoo: `python bench/detection_held_out.py --victims DIR ... --data PATH`.

`--victims`: folders written by `onp.attack`; `--zoo`: networks of a zoo, those from `--first` on, which the verdict must not
have learned from; without either the embedded networks. Every network is scanned with every seed, each another split of the
clean images and another start of the triggers. Prints a line a scan, and how many backdoored and clean networks get which
decision. Writes bench/results/detection_held_out.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onp.compare.victims import read_card
from onp.data.images import ImageSet, joined, load_images, split
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
from onp.zoo.entry import read_zoo

Case = tuple[dict[str, Any], Victim, ImageSet]
"""The card of a network, the network, and clean images."""


def embedded() -> Iterator[Case]:
    """The embedded networks."""
    for name in DEMOS:
        each = demo(name)
        target = None if each.trigger is None else 0
        card = {"name": name, "arch": ARCH, "attack": "none" if target is None else name, "target": target}
        yield card, load_victim(each.model, ARCH, Normalisation.parse(NORM), (1, 28, 28)), load_images(str(each.clean))


def of_zoo(zoo: str, first: int) -> Iterator[Case]:
    """Networks of a zoo that the verdict did not learn from; the first backdoor that works counts."""
    for entry in read_zoo(zoo):
        if entry.usable and entry.index >= first:
            works = [each for each in entry.card["backdoors"] if each["works"] and not entry.card["clean"]]
            card = {"name": str(entry.index), "attack": "none", "target": None, "data": entry.card["training"]["data"]}
            card |= {"attack": works[0]["attack"], "target": works[0]["target"], "asr": works[0]["asr"]} if works else {}
            card |= {"arch": entry.card["arch"], "after": entry.card["after"], "acc": entry.card["acc"]}
            yield card, entry.victim(), entry.clean(0)


def victims(folders: list[str], data: str) -> Iterator[Case]:
    """Victims written by `onp attack`, with images that they were not trained on."""
    images = load_images(data)
    channels, height, width = images.images.shape[1:]
    for folder in map(Path, folders):
        card = read_card(folder)
        norm = Normalisation.parse(card["norm"])
        victim = load_victim(folder / "model.safetensors", card["arch"], norm, (channels, height, width))
        names = ("attack", "arch", "seed", "epochs", "acc", "asr")
        target = None if card["attack"] == "none" else card["target"]
        yield {"name": folder.name, "target": target} | {name: card.get(name) for name in names}, victim, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", nargs="+", default=[])
    parser.add_argument("--data", help="clean images for the victims")
    parser.add_argument("--zoo", help="scan networks of a zoo, those from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="default", choices=list(PRESETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "detection_held_out.json")
    options = parser.parse_args()
    if options.victims and not options.data:
        parser.error("--victims needs --data")
    cases = embedded()
    if options.victims:
        cases = victims(options.victims, options.data)
    elif options.zoo:
        cases = of_zoo(options.zoo, options.first)
    verdict = learned_verdict()
    rows: list[dict[str, Any]] = []
    for card, victim, images in cases:
        for seed in options.seeds:
            splits = split(images, seed)
            bn = bn_statistics(victim, joined(splits.build, splits.score))
            scores = scan(victim, splits, bn, DetectRun(PRESETS[options.preset].detect, seed))
            context = context_of(victim, bn, len(images))
            answer = target_probabilities(scores, context, verdict)
            row: dict[str, Any] = card | {"preset": options.preset, "defence_seed": seed}
            row |= {"probability": round(answer.backdoor, 4), "decision": verdict.decision(answer.backdoor)}
            row |= {"predicted_target": answer.predicted_target, "evidence": answer.evidence[answer.predicted_target]}
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
