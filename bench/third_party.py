"""Detection where nothing is like the zoo: `python bench/third_party.py [--cases DIR] [--changed] [--zoo DIR]`.

`--cases`: networks that others trained, one a folder: model.pt2 (an exported program), images.npz (images, labels, class_names)
and case.json (norm, source, licence, what is odd about it). None is known to carry a backdoor, so a decision that there is one
is taken for a false positive. `--changed`: the embedded networks with clean images of their own classes that were made in
another way than their training's. `--zoo`: a few networks of a zoo with fewer clean images than the verdict was learned with;
they were in the zoo, so only the change from 500 images on counts.

Prints a line a scan and writes bench/results/third_party.json as scans are finished, each in place of an earlier one of the
same network, images and seed. What onp refuses is a row with the sentence that says why.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import onp
from onp.data.images import ImageSet, load_images
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, DEMOS, NORM, clean_images, demo
from onp.defend.presets import PRESETS
from onp.defend.report.environment import hardware, versions
from onp.defend.sanity import predicted_classes
from onp.detect.probability import learned_verdict
from onp.engine.metrics import accuracy
from onp.files import write_atomically
from onp.model.victim import Victim, load_victim
from onp.zoo.entry import read_zoo

OUT = Path(__file__).parent / "results" / "third_party.json"
JPEG_QUALITY = 20


@dataclass(frozen=True, eq=False)
class Trial:
    """A network and the clean images that it is scanned with."""

    name: str
    images_are: str  #: what is special about the images
    victim: Victim
    images: ImageSet
    norm: str
    facts: dict[str, Any]  #: what is known of the network


def of_others(folder: Path) -> Iterator[Trial]:
    """The networks that others trained."""
    for path in sorted(folder.glob("*/case.json")):
        facts = json.loads(path.read_text())
        images = load_images(path.parent / "images.npz")
        shape = images.images.shape[1:]
        victim = load_victim(path.parent / "model.pt2", None, Normalisation.parse(facts["norm"]), shape)
        yield Trial(facts["name"], "of others", victim, images, facts["norm"], facts | {"backdoored": False})


def jpeg(images: Tensor) -> Tensor:
    """uint8 `[N, 1, H, W]`, compressed and read again."""
    found = []
    for image in images[:, 0]:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
        found.append(torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8).reshape(image.shape))
    return torch.stack(found)[:, None]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 `[N, C, size, size]`."""
    pixels = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255).byte()


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    f"JPEG of quality {JPEG_QUALITY}": jpeg,
    "reduced to half and enlarged": lambda images: resized(resized(images, 14), 28),
    "middle 24x24 pixels enlarged": lambda images: resized(images[..., 2:26, 2:26], 28),
    "0.6 times the contrast": lambda images: (255 * 0.2 + 0.6 * images.float()).byte(),
    "mirrored": lambda images: images.flip(-1),
}


def changed() -> Iterator[Trial]:
    """The embedded networks with images that were made in another way."""
    clean = clean_images()
    for name in DEMOS:
        victim = load_victim(demo(name).model, ARCH, Normalisation.parse(NORM), clean.images.shape[1:])
        for change, function in CHANGES.items():
            images = ImageSet(function(clean.images), clean.labels, clean.class_names)
            backdoor = {"target": None if name == "clean" else 0, "backdoored": name != "clean"}
            yield Trial(f"embedded {name}", change, victim, images, NORM, backdoor)


def fewer(zoo: Path, networks: int, counts: list[int]) -> Iterator[Trial]:
    """Networks of the zoo, half of them clean and from its whole length, with fewer images."""
    usable = [entry for entry in read_zoo(zoo) if entry.usable]
    for truth in (True, False):
        entries = [entry for entry in usable if entry.card["clean"] == truth]
        for entry in entries[:: max(1, len(entries) // (networks // 2))][: networks // 2]:
            victim, clean = entry.victim(), entry.clean(0)
            targets = [each["target"] for each in entry.card["backdoors"] if each["works"]]
            attacks = [each["attack"] for each in entry.card["backdoors"]]
            facts = {"backdoored": not truth, "target": targets[0] if targets and not truth else None, "attacks": attacks}
            for count in counts:
                images = clean.subset(range(count))
                yield Trial(f"zoo {entry.index:04d}", f"{count} images", victim, images, entry.card["training"]["norm"], facts)


def scanned(trial: Trial, preset: str, seed: int) -> dict[str, Any]:
    """The row of a scan."""
    victim, images = trial.victim, trial.images
    shares = accuracy(images.labels, predicted_classes(victim, images))
    row = trial.facts | {
        **{"name": trial.name, "images_are": trial.images_are, "seed": seed, "preset": preset},
        **{"images": len(images), "classes": victim.classes, "acc": round(shares.value, 4)},
    }
    start = time.perf_counter()
    names = images.class_names
    try:
        evidence = onp.detect(
            victim.model, images.images, images.labels, norm=trial.norm, preset=preset, class_names=names, seed=seed, quiet=True
        )
    except onp.InputError as error:
        return row | {"refused": str(error)}
    target = evidence.predicted_target
    return row | {
        "decision": evidence.decision,
        "probability": round(evidence.probability, 4),
        "predicted_target": target,
        "log_odds": {name: round(value, 3) for name, value in evidence.evidence[target].items()},
        "anomaly_index": {name: round(values[target], 2) for name, values in evidence.anomaly_index.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    answer = row.get("refused") or f"{row['decision']} {row['probability']:.3f} class {row['predicted_target']}"
    truth = "backdoored" if row["backdoored"] else "clean"
    images = f"{row['images_are']}, {row['images']} images"
    return (
        f"{row['name']:24} {truth:10} {row['classes']:5} classes  ACC {100 * row['acc']:3.0f} %  {images:42} {answer} "
        f"({row.get('seconds', 0):.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="folder of networks of others")
    parser.add_argument("--changed", action="store_true", help="embedded networks with changed images")
    parser.add_argument("--zoo", type=Path, help="zoo whose networks are scanned with fewer images")
    parser.add_argument("--networks", type=int, default=8, help="of the zoo")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 200, 500], help="images for the networks of the zoo")
    parser.add_argument("--only", nargs="+", help="scan these networks alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="default", choices=list(PRESETS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    trials = [
        *(of_others(options.cases) if options.cases else ()),
        *(changed() if options.changed else ()),
        *(fewer(options.zoo, options.networks, options.counts) if options.zoo else ()),
    ]
    about = {"hardware": hardware(), "versions": versions()}
    keys = ("name", "images_are", "images", "seed", "preset")
    for trial in trials:
        for seed in options.seeds if options.only is None or trial.name in options.only else ():
            row = scanned(trial, options.preset, seed) | {"verdict": learned_verdict().version}
            rows = [old for old in rows if any(old[key] != row[key] for key in keys)] + [row]
            print(line(row), flush=True)
            write_atomically(options.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
