"""Training the networks of a zoo: resumable, one network a task, a folder for each."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import nn

from onp import progress
from onp.attack.measure import measure_victim
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.errors import InputError, first_line
from onp.files import write_atomically
from onp.numerics import strict_float32
from onp.pool import Workers, run_all
from onp.zoo.config import ZooConfig
from onp.zoo.datasets import available, drawn, files_of, images_of
from onp.zoo.distribution import Distribution
from onp.zoo.entry import CLEAN_IMAGES, SPLITS, test_images
from onp.zoo.post_processing import processed
from onp.zoo.recipe import FAILED, WORKS, Recipe
from onp.zoo.repair import repaired
from onp.zoo.summary import line
from onp.zoo.training import Trained, attack_config, train_network

OTHER_IMAGES = 10_000_000  # added to the seed of a network for the images that it is processed with


@dataclass(frozen=True)
class Task:
    """One network to train."""

    zoo: str
    recipe: Recipe
    files: tuple[str, ...]  #: the image sets, as the command line gives them
    alone: bool  #: whether this process may use all its threads

    @property
    def folder(self) -> Path:
        """Of the network."""
        return folder_of(self.zoo, self.recipe.index)


def folder_of(zoo: str | Path, index: int) -> Path:
    """Of a network of a zoo."""
    return Path(zoo) / "networks" / f"{index:04d}"


def build(config: ZooConfig) -> int:
    """Train the networks that are not there yet; returns how many failed.

    Raises:
        InputError: an option cannot be used, or the folder holds another zoo.
    """
    files = files_of(config.data)
    names = available(files)
    _claim(config)
    recipes = [Distribution().draw(config.seed, index, names) for index in range(config.first, config.first + config.count)]
    alone = config.ray is None and config.workers < 1
    tasks = [Task(config.out, recipe, config.data, alone) for recipe in recipes]
    todo = [task for task in tasks if not (task.folder / "card.json").exists()]
    workers = Workers(config.ray, 1, config.gpu_share, 0 if config.ray else config.workers)
    failures = 0
    with progress.stage("networks", len(todo), config.quiet, config.json) as bar:
        for task, result in run_all(make, todo, workers):
            if isinstance(result, Exception):
                failures += 1
                bar.print(f"network {task.recipe.index} failed: {first_line(result)}")
            elif not config.quiet:
                bar.print(line(result))
            bar.advance(note=f"{task.recipe.index:04d}")
    return failures


def _claim(config: ZooConfig) -> None:
    """Note which zoo the folder holds; raises InputError where it holds another one."""
    note = Path(config.out) / "zoo.json"
    wanted = json.loads(json.dumps({"seed": config.seed, "data": sorted(files_of(config.data)), **asdict(Distribution())}))
    try:
        if not note.exists():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps(wanted, indent=1) + "\n")
        found = json.loads(note.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{note} cannot be read or written; give --out another folder.") from error
    changed = sorted(key for key in wanted if found.get(key) != wanted[key])
    if changed:
        raise InputError(f"{config.out} holds a zoo with another {', '.join(changed)}; give --out a new folder.")


@strict_float32()
def make(task: Task) -> dict[str, Any]:
    """Train one network, do to it what its recipe says, measure it, write its folder; returns its card."""
    if not task.alone:
        torch.set_num_threads(1)
    start, recipe, one = time.monotonic(), task.recipe, task.recipe.training
    files = files_of(task.files)
    paths = files.get(one.data, ("", ""))
    pool = images_of(one.data, "train", one.labels, paths[0])
    train_set = drawn(pool, one.images, recipe.seed, one.imbalance)
    test = test_images(one.data, list(one.labels), paths[1], recipe.seed)
    test = test.subset(range(SPLITS * CLEAN_IMAGES, len(test)))
    task.folder.mkdir(parents=True, exist_ok=True)
    work = task.folder / "unfinished"
    shutil.rmtree(work, ignore_errors=True)
    trained = train_network(recipe, train_set, work)
    config, norm = attack_config(recipe, train_set.images.shape[1]), Normalisation.parse(one.norm)
    # Somebody who passes a network on has other clean images than those of the splits and the test.
    other = drawn(pool, 2_000, recipe.seed + OTHER_IMAGES)
    network, pruned = trained.network, 0
    if recipe.after == "repaired":  # nothing is to be repaired in a clean network
        if trained.triggers:
            network, pruned = repaired(network, other, norm, trained.triggers[0])
        after = "repaired" if pruned else "none"
    else:
        network, after = processed(network, recipe.after, other, config)
    card = {
        **recipe.card(),
        "arch": config.arch,
        "after": after,
        "pruned": pruned,
        **_truth(Trained(network, trained.triggers), test, recipe),
        "batch_norms": sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()),
        "files": list(task.files),
        "train_images": len(train_set),
        "test_images": len(test),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start, 1),
    }
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(task.folder / "model.safetensors", serialise(weights))
    for number, trigger in enumerate(trained.triggers):
        trigger.save(task.folder / f"trigger-{number}.safetensors")
    shutil.rmtree(work, ignore_errors=True)
    write_atomically(task.folder / "card.json", json.dumps(card, indent=1) + "\n")
    return card


def _truth(trained: Trained, test: ImageSet, recipe: Recipe) -> dict[str, Any]:
    """ACC, the ASR and RA of each backdoor, and whether the network counts as clean."""
    norm = Normalisation.parse(recipe.training.norm)
    figures = measure_victim(trained.network, test, norm, None, 0)
    backdoors = []
    for planted, trigger in zip(recipe.card()["backdoors"], trained.triggers, strict=True):
        found = measure_victim(trained.network, test, norm, trigger, planted["target"])
        known = {"asr": round(found["asr"], 4), "ra": round(found["ra"], 4)} if np.isfinite(found["asr"]) else {}
        backdoors.append({**planted, **known, "works": found["asr"] >= WORKS})
    gone = recipe.after == "repaired" and all(each.get("asr", 1.0) < FAILED for each in backdoors)
    return {"acc": figures["acc"], "backdoors": backdoors, "clean": not backdoors or gone}
