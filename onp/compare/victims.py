"""The victims of a table: embedded, ready, or trained here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onp.attack import AttackConfig, attack
from onp.attack.folder import SAMPLE, UNFINISHED
from onp.compare.config import BUNDLED, CompareConfig
from onp.compare.datasets import Datasets, short_name, slug
from onp.data.fingerprint import check_overlap, fingerprint, image_hashes
from onp.data.images import load_images
from onp.data.normalisation import Normalisation
from onp.defend.demos import DEMOS, demo
from onp.errors import InputError
from onp.files import file_kind, read_regular
from onp.model.archs import option as arch_option

CARD_BYTES = 2**20  # at most, of a card or of a sample of hashes


@dataclass(frozen=True)
class VictimFiles:
    """Where a victim and its images lie, and its attack; the attack is for measuring only."""

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
    """A victim to be trained, and where its files will lie."""

    config: AttackConfig
    fingerprint: str  #: of the training images
    files: VictimFiles

    @property
    def done(self) -> bool:
        """Whether the victim is there already: its card is written last."""
        return (Path(self.config.out) / "card.json").exists()


def bundled_victim(name: str) -> VictimFiles:
    """The embedded victim of that name."""
    chosen = demo(name)
    folder = chosen.model.parent
    return _with_card(folder, read_card(folder), name, "fashion-mnist", (chosen.clean, chosen.evaluation))


def ready_victims(config: CompareConfig, datasets: Datasets) -> list[VictimFiles]:
    """The victims named by `config.victims`; the default where nothing is to be trained is the embedded ones.

    Raises:
        InputError: a folder that onp.attack did not write, or ready victims without images to measure with.
    """
    names = config.victims or (() if config.attacks else (BUNDLED,))
    victims: list[VictimFiles] = []
    for name in names:
        if name == BUNDLED or name in DEMOS:
            victims += map(bundled_victim, DEMOS if name == BUNDLED else (name,))
            continue
        if file_kind(Path(name)) is None:
            raise InputError(f"There is no folder {name} of a victim; the embedded victims are {', '.join(DEMOS)}.")
        if len(config.test_data) != 1:
            raise InputError(f"The victim {name} needs one --test-data: images that it was not trained on.")
        folder, test_data = Path(name), config.test_data[0]
        card = read_card(folder)
        channels = arch_option(card["arch"], "channels", 3)
        if (folder / SAMPLE).exists():
            seen = read_regular(folder / SAMPLE, CARD_BYTES).decode(errors="replace").split()
            check_overlap(seen, card["train_images"], datasets.read(test_data, channels), f"images of --test-data {test_data}")
        splits = datasets.split(test_data, channels, tuple(card.get("class_names") or ()))
        victims.append(_with_card(folder, card, folder.absolute().name, short_name(test_data), splits))
    return victims


def planned_trainings(config: CompareConfig, datasets: Datasets) -> list[Training]:
    """The victims of `config.attacks` x archs x data, each trained once in the table's folder.

    Raises:
        InputError: something that would make every training fail, or a victim of that name trained with other settings.
    """
    trainings = []
    for index, (data, test_data) in enumerate(zip(config.data, config.test_data, strict=True) if config.attacks else ()):
        norm = config.norm[index if len(config.norm) > 1 else 0]
        for given in config.archs:
            channels = arch_option(given, "channels", datasets.read(test_data).images.shape[1])
            pair = data, test_data
            arch, class_names = _fitted(given, norm, pair, channels, datasets)
            clean, evaluation = datasets.split(test_data, channels, class_names)
            images = datasets.training_fingerprint(data, channels)
            for name in config.attacks:
                slugged = slug(f"{name}-{arch}-{short_name(data)}-{config.victim_seed}")
                folder = Path(config.out) / "victims" / slugged
                recipe = AttackConfig(
                    data=data,
                    test_data=test_data,
                    out=str(folder),
                    quiet=True,
                    attack=name,
                    arch=arch,
                    norm=norm,
                    epochs=config.epochs,
                    seed=config.victim_seed,
                )
                files = VictimFiles(
                    name=slugged,
                    attack=name,
                    arch=arch,
                    data=short_name(data),
                    norm=norm,
                    target=recipe.target,
                    model=str(folder / "model.safetensors"),
                    trigger=None if name == "none" else str(folder / "trigger.safetensors"),
                    clean=str(clean),
                    evaluation=str(evaluation),
                )
                trainings.append(Training(recipe, images, files))
                _check_begun(trainings[-1])
    return trainings


def _fitted(arch: str, norm: str, pair: tuple[str, str], channels: int, datasets: Datasets) -> tuple[str, tuple[str, ...]]:
    """A network's spec with the classes and channels of its images, and the names of their classes.

    pair: paths of the training and the test images.
    """
    data, test_data = pair
    train_set, test_set = (datasets.read(path, channels) for path in pair)
    if train_set.images.shape[1:] != test_set.images.shape[1:]:
        raise InputError(f"The images of --data {data} and --test-data {test_data} are of different sizes; give sets of one.")
    if len(Normalisation.parse(norm).mean) not in (1, channels):
        raise InputError(
            f"--norm {norm} is not for images of {channels} channels, as those of {data} are taken; give another, such as half."
        )
    check_overlap(image_hashes(train_set), len(train_set), test_set, f"images of --test-data {test_data}")
    classes = max(len(train_set.class_names), int(train_set.labels.max()) + 1, int(test_set.labels.max()) + 1)
    for key, value in (("classes", classes), ("channels", channels)):
        if f"{key}=" not in arch:
            arch += f"{',' if ':' in arch else ':'}{key}={value}"
    if arch_option(arch, "classes", 10) < classes:
        raise InputError(f"The images of --data {data} are of {classes} classes; leave classes= out of --archs, or give that.")
    return arch, train_set.class_names


def _check_begun(training: Training) -> None:
    """Raise InputError where the victim's folder lacks a file, or holds one of other images or another normalisation."""
    out = Path(training.config.out)
    if training.done:
        _trigger_file(out, training.config.attack)
    begun: dict[str, object] = {}
    for path in (out / "card.json", out / UNFINISHED / "settings.json"):
        try:
            begun |= json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged; delete its folder, and the victim is trained again.") from error
    for name, what, wanted in (("norm", "--norm", training.config.norm), ("data", "images as --data", training.fingerprint)):
        if begun.get(name, wanted) != wanted:
            raise InputError(f"{out} holds a victim trained with other {what}; give --out a new folder.")


def train(training: Training) -> None:
    """Train one victim; a killed training continues."""
    attack(training.config)


def read_card(folder: Path) -> dict[str, Any]:
    """The card that onp.attack wrote beside a victim.

    Raises:
        InputError: there is none.
    """
    try:
        card = json.loads(read_regular(folder / "card.json", CARD_BYTES))
        if not {"attack", "arch", "norm", "target"} <= card.keys():
            raise ValueError
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder} holds no victim with a card.json of onp attack; give such a folder, or an embedded victim: "
            f"{', '.join(DEMOS)}."
        ) from error
    return dict(card)


def content(files: VictimFiles) -> dict[str, str | int | None]:
    """What figures of a victim depend on: fingerprints of its files and images, and how it is used."""
    return {
        "model": _file_hash(files.model),
        "trigger": _file_hash(files.trigger) if files.trigger else None,
        "clean images": fingerprint(load_images(files.clean)),
        "evaluation images": fingerprint(load_images(files.evaluation)),
        "network": files.arch,
        "normalisation": files.norm,
        "target": files.target,
    }


def _with_card(folder: Path, card: dict[str, Any], name: str, data: str, splits: tuple[Path, Path]) -> VictimFiles:
    """The victim that onp.attack wrote into a folder; `splits` are the files of clean and evaluation images."""
    trigger = _trigger_file(folder, card["attack"])
    Normalisation.parse(card["norm"])
    return VictimFiles(
        name=name,
        attack=card["attack"],
        arch=card["arch"],
        data=data,
        norm=card["norm"],
        target=card["target"],
        model=str(folder / "model.safetensors"),
        trigger=str(trigger) if trigger else None,
        clean=str(splits[0]),
        evaluation=str(splits[1]),
    )


def _trigger_file(folder: Path, attack_name: str) -> Path | None:
    """The trigger's file, None for a clean network; raises InputError where a file of the victim is missing."""
    # The card says what the victim is: a trigger may lie there from an earlier training.
    trigger = None if attack_name == "none" else folder / "trigger.safetensors"
    for path in filter(None, (folder / "model.safetensors", trigger)):
        if not path.exists():
            raise InputError(f"{folder} lacks {path.name}, but its card.json says attack {attack_name}; put it back.")
    return trigger


def _file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
