"""The victims of a table: embedded, ready, or trained here."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onp.archs import option as arch_option
from onp.attack import AttackConfig
from onp.attack import run as train_victim
from onp.bundle.demos import DEMOS, demo
from onp.compare.config import BUNDLED, CompareConfig
from onp.data import ImageSet, load_images
from onp.errors import InputError
from onp.files import write_atomically
from onp.triggers import TRIGGERS

Cuts = dict[Path, ImageSet]  # files of images that are still to be written

CLEAN_SEED = 0  # of the choice of clean images, the same for every victim of one data set


@dataclass(frozen=True)
class VictimFiles:
    """Where a victim and its images lie, and what is known of its attack; the attack is for measuring only."""

    name: str
    attack: str  #: none for a clean network
    arch: str
    data: str  #: short name of the data set
    norm: str
    target: int
    model: str
    trigger: str | None
    clean: str  #: what a defence gets
    evaluation: str  #: what is measured on


@dataclass(frozen=True)
class Training:
    """A victim to be trained: `attack.run` with these."""

    config: AttackConfig
    data: str
    test_data: str
    out: str


def bundled() -> list[VictimFiles]:
    """The embedded victims."""
    return [
        _from_card(name, demo(name).model.parent, "fashion-mnist", demo(name).clean, demo(name).evaluation) for name in DEMOS
    ]


def ready(config: CompareConfig, folder: Path, cuts: Cuts) -> list[VictimFiles]:
    """The victims named by `config.victims`; the default where nothing is to be trained is the embedded ones.

    Images that are still to be written go into `cuts`.

    Raises InputError for a folder that onp.attack did not write, and for ready victims without images to measure with.
    """
    names = config.victims or (() if config.attacks else (BUNDLED,))
    found: list[VictimFiles] = []
    for name in names:
        if name == BUNDLED:
            found += bundled()
            continue
        if len(config.test_data) != 1:
            raise InputError("--victims DIR needs one --test-data: images that the victims were not trained on.")
        card = read_card(Path(name))
        clean, evaluation = images_for(config, config.test_data[0], arch_option(card["arch"], "channels", 3), folder, cuts)
        found.append(_from_card(Path(name).name, Path(name), short(config.test_data[0]), clean, evaluation))
    return found


def trainings(config: CompareConfig, folder: Path, cuts: Cuts) -> list[tuple[Training, VictimFiles]]:
    """The victims of `config.attacks` x archs x data, to be trained where their card is missing; `cuts` as for `ready`."""
    plans = []
    for index, (data, test_data) in enumerate(zip(config.data, config.test_data, strict=True) if config.attacks else ()):
        norm = config.norm[index if len(config.norm) > 1 else 0]
        classes, channels = _kind(load_images(test_data))
        clean, evaluation = images_for(config, test_data, channels, folder, cuts)
        for arch in config.archs:
            for key, value in (("classes", classes), ("channels", channels)):
                if f"{key}=" not in arch:
                    arch += f"{',' if ':' in arch else ':'}{key}={value}"
            for attack in config.attacks:
                if attack != "none" and attack not in TRIGGERS:
                    raise InputError(f"There is no attack '{attack}'; choose one of none, {', '.join(TRIGGERS)}.")
                name = _slug(f"{attack}-{arch}-{short(data)}-{config.victim_seed}")
                out = folder / "victims" / name
                attack_config = AttackConfig(attack=attack, arch=arch, norm=norm, epochs=config.epochs, seed=config.victim_seed)
                trigger = None if attack == "none" else str(out / "trigger.safetensors")
                files = VictimFiles(
                    name,
                    attack,
                    arch,
                    short(data),
                    norm,
                    attack_config.target,
                    str(out / "model.safetensors"),
                    trigger,
                    str(clean),
                    str(evaluation),
                )
                plans.append((Training(attack_config, data, test_data, str(out)), files))
    return plans


def train(training: Training) -> None:
    """Train one victim; a killed training continues."""
    channels = arch_option(training.config.arch, "channels", 3)
    train_set = load_images(training.data, channels=channels)
    test_set = load_images(training.test_data, channels=channels).relabelled(train_set.class_names)
    train_victim(training.config, train_set, test_set, Path(training.out), quiet=True)


def trained(training: Training) -> bool:
    """Whether the victim is there already: its card is written last."""
    return (Path(training.out) / "card.json").exists()


def read_card(folder: Path) -> dict:
    """The card that onp.attack wrote beside a victim; raises InputError where there is none."""
    try:
        card = json.loads((folder / "card.json").read_text())
        if not {"attack", "arch", "norm", "target"} <= card.keys():
            raise ValueError
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no victim with a card.json of onp.attack; give such a folder, or '{BUNDLED}'."
        ) from error
    return dict(card)


def images_for(config: CompareConfig, test_data: str, channels: int, folder: Path, cuts: Cuts) -> tuple[Path, Path]:
    """Cut the test set into `clean` images, equally many of each class, and others to measure on; where their files are
    missing, what is to be written goes into `cuts`.
    """
    target = folder / "data" / _slug(f"{short(test_data)}-{channels}")
    clean, evaluation = target / "clean.npz", target / "eval.npz"
    if not evaluation.exists() and evaluation not in cuts:
        images = load_images(test_data, channels=channels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(CLEAN_SEED))
        # By class in turn, so that both parts hold all classes: position within its class first, then at random.
        rank = torch.zeros(len(images), dtype=torch.int64)
        for label in images.labels.unique():
            members = order[images.labels[order] == label]
            rank[members] = torch.arange(len(members))
        order = order[rank[order].argsort(stable=True)]
        if len(images) < config.clean + 100:
            raise InputError(f"{test_data} holds {len(images)} images; at least {config.clean + 100} are needed for --clean.")
        cuts[clean] = images.subset(order[: config.clean])
        cuts[evaluation] = images.subset(order[config.clean : config.clean + config.evaluation])
    return clean, evaluation


def write_cuts(cuts: Cuts) -> None:
    """Write images under their paths."""
    for path, images in cuts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, images)


def short(path: str) -> str:
    """A short name of a data set: the file's or folder's name without endings."""
    return _slug(Path(path.partition("::")[0]).name.partition(".")[0])


def _from_card(name: str, folder: Path, data: str, clean: Path, evaluation: Path) -> VictimFiles:
    card = read_card(folder)
    trigger = folder / "trigger.safetensors"
    return VictimFiles(
        name,
        card["attack"],
        card["arch"],
        data,
        card["norm"],
        card["target"],
        str(folder / "model.safetensors"),
        str(trigger) if trigger.exists() else None,
        str(clean),
        str(evaluation),
    )


def _kind(images: ImageSet) -> tuple[int, int]:
    return max(len(images.class_names), int(images.labels.max()) + 1), int(images.images.shape[1])


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def _write(path: Path, images: ImageSet) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images.images.numpy(),
        labels=images.labels.numpy(),
        class_names=np.array(images.class_names, dtype=np.str_),
    )
    write_atomically(path, buffer.getvalue())
