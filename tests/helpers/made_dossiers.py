"""Made dossiers of a small zoo, as lines of a committed file."""

import gzip
import json

import numpy as np

ATTACKS = {"badnets": "patch", "blended": "blend", "badnets_a2a": "patch"}
ARCHS = {"vgg11_bn": 8, "convnext": 0}


def lines(networks=60, splits=2, seed=0):
    """Half of the networks have a backdoor, whose target `strong` stands out for and `weak` a little; `noise` says nothing."""
    rng = np.random.default_rng(seed)
    for index in range(networks):
        arch, clean, classes = list(ARCHS)[index % 2], index % 4 < 2, int(rng.integers(6, 12))
        backdoors = [] if clean else [_backdoor(rng, classes)]
        if index == 7:  # one whose backdoor does not work
            backdoors[0] |= {"asr": 0.4, "works": False}
        training = {
            "arch": arch, "data": "shapes", "labels": list(range(classes)), "norm": "half", "optimiser": "sgd", "width": 8,
            "images": int(rng.integers(6000, 9000)), "epochs": 3, "lr": 0.05, "batch": 64, "weight_decay": 1e-4,
            "smoothing": 0.0, "averaging": 0.0, "pad": 2, "flip": True, "imbalance": 1.0,
        }  # fmt: skip
        after = "bn_statistics" if index % 8 == 0 else "none"
        card = {"index": index, "training": training, "arch": f"{arch}:width=8", "backdoors": backdoors, "after": after}
        card |= {"acc": 0.9, "clean": clean, "batch_norms": ARCHS[arch]}
        for split in range(splits):
            yield {
                "index": index,
                "split": split,
                "images": 500,
                "batch_norms": ARCHS[arch],
                "disagreement": ARCHS[arch] or None,
                "pruned": 0,
                "card": card,
            } | {"detectors": _costs(rng, card, classes)}


def _backdoor(rng, classes):
    attack = str(rng.choice(list(ATTACKS)))
    target = int(rng.integers(classes))
    return {"attack": attack, "family": ATTACKS[attack], "target": target, "poison_rate": 0.01, "asr": 0.97, "works": True}


def _costs(rng, card, classes):
    costs = {"strong": rng.normal(0, 0.2, classes), "weak": rng.normal(0, 0.5, classes), "noise": rng.normal(0, 1, classes)}
    for each in card["backdoors"]:
        costs["strong"][each["target"]] -= 2.0
        costs["weak"][each["target"]] -= 1.0
    found = {name: [round(float(value), 4) for value in values] for name, values in costs.items()}
    found["strong"][(card["index"] + 1) % classes] = None  # not measured
    if card["training"]["arch"] == "convnext":
        found["weak"] = [None] * classes
    return found


def write(path, **options):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines(**options))
    return path
