"""BN-shift match of true triggers: `python bench/bn_match.py --victims DIR ... --data PATH`.

`--victims`: folders written by `onp.attack`; without them the embedded networks. Every seed is another split of the clean
images. Prints the split-half reliability of the BN-statistics residual, and the cosine between the residual and what the true
trigger changes in the features; triggers are used for measuring only. Writes bench/results/bn_match.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from detection import networks

from onp.attack.triggers import load_trigger
from onp.data.images import joined, load_images, split
from onp.defend.demos import demo
from onp.defend.report.environment import hardware, versions
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", nargs="+", default=[])
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bn_match.json")
    options = parser.parse_args()
    files = {Path(folder).name: Path(folder) / "trigger.safetensors" for folder in options.victims}
    rows: list[dict[str, Any]] = []
    for card, victim, data in networks(options.victims, options.data):
        trigger = None
        if card["target"] is not None:
            trigger = load_trigger(files.get(card["name"]) or demo(card["name"]).trigger)
        for seed in options.seeds:
            splits = split(load_images(data), seed)
            images = joined(splits.build, splits.score)
            match = bn_match(victim, bn_statistics(victim, images))
            row: dict[str, Any] = {"name": card["name"], "seed": seed}
            row["reliability"] = 0.0 if match is None else match.reliability
            if match is not None and trigger is not None:
                others = images.subset(images.labels != card["target"]).pixels()
                row["match"] = match.of_images(others, trigger(others))
            rows.append(row)
            print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), flush=True)
    result = {"rows": rows, "hardware": hardware(), "versions": versions()}
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
