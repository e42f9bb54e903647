"""The victims of a table: embedded, ready, or trained here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from onp.attack import AttackConfig, attack
from onp.attack.folder import UNFINISHED
from onp.compare.config import BUNDLED, CompareConfig
from onp.compare.datasets import Cuts, short, slug
from onp.data.digest import digest
from onp.data.fingerprint import check_apart, marks
from onp.data.images import Normalisation, load_images
from onp.defend.demos import DEMOS, demo
from onp.errors import InputError
from onp.model.archs import option as arch_option


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
    """A victim to be trained: `onp.attack` with these."""

    config: AttackConfig
    fingerprint: str  #: of the training images


def bundled() -> list[VictimFiles]:
    """The embedded victims."""
    found = []
    for name in DEMOS:
        folder = demo(name).model.parent
        found.append(_from_card(read_card(folder), name, folder, "fashion-mnist", demo(name).clean, demo(name).evaluation))
    return found


def ready(config: CompareConfig, cuts: Cuts) -> list[VictimFiles]:
    """The victims named by `config.victims`; the default where nothing is to be trained is the embedded ones.

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
        card, test_data = read_card(Path(name)), config.test_data[0]
        channels = arch_option(card["arch"], "channels", 3)
        if "sample" in card:
            images = cuts.read(test_data, channels)
            check_apart(card["sample"].split(), card["train_images"], images, f"images of --test-data {test_data}")
        clean, evaluation = cuts.cut(test_data, channels, tuple(card.get("class_names") or ()))
        found.append(_from_card(card, Path(name).absolute().name, Path(name), short(test_data), clean, evaluation))
    return found


def trainings(config: CompareConfig, folder: Path, cuts: Cuts) -> list[tuple[Training, VictimFiles]]:
    """The victims of `config.attacks` x archs x data, to be trained where their card is missing.

    Raises InputError for whatever would make every training fail, and where a victim of that name was trained with others.
    """
    plans = []
    for index, (data, test_data) in enumerate(zip(config.data, config.test_data, strict=True) if config.attacks else ()):
        norm = config.norm[index if len(config.norm) > 1 else 0]
        for arch in config.archs:
            channels = arch_option(arch, "channels", cuts.read(test_data).images.shape[1])
            arch, images, clean, evaluation = _fitted(arch, norm, data, test_data, channels, cuts)
            for attack_name in config.attacks:
                name = slug(f"{attack_name}-{arch}-{short(data)}-{config.victim_seed}")
                out = folder / "victims" / name
                attack_config = AttackConfig(
                    data=data,
                    test_data=test_data,
                    out=str(out),
                    quiet=True,
                    attack=attack_name,
                    arch=arch,
                    norm=norm,
                    epochs=config.epochs,
                    seed=config.victim_seed,
                )
                trigger = None if attack_name == "none" else str(out / "trigger.safetensors")
                files = VictimFiles(
                    name,
                    attack_name,
                    arch,
                    short(data),
                    norm,
                    attack_config.target,
                    str(out / "model.safetensors"),
                    trigger,
                    str(clean),
                    str(evaluation),
                )
                training = Training(attack_config, images)
                _check_kept(training)
                plans.append((training, files))
    return plans


def _fitted(arch: str, norm: str, data: str, test_data: str, channels: int, cuts: Cuts) -> tuple[str, str, Path, Path]:
    """A network's spec with the classes and channels of its images, the training images' digest, and the test set's cut."""
    train_set, test_set = cuts.read(data, channels), cuts.read(test_data, channels)
    if train_set.images.shape[1:] != test_set.images.shape[1:]:
        raise InputError(f"The images of --data {data} and --test-data {test_data} are of different sizes; give sets of one.")
    if len(Normalisation.parse(norm).mean) not in (1, channels):
        raise InputError(
            f"--norm {norm} is not for images of {channels} channels, as those of {data} are taken; give another, such as half."
        )
    check_apart(marks(train_set), len(train_set), test_set, f"images of --test-data {test_data}")
    clean, evaluation = cuts.cut(test_data, channels, train_set.class_names)
    classes = max(len(train_set.class_names), int(train_set.labels.max()) + 1, int(test_set.labels.max()) + 1)
    for key, value in (("classes", classes), ("channels", channels)):
        if f"{key}=" not in arch:
            arch += f"{',' if ':' in arch else ':'}{key}={value}"
    if arch_option(arch, "classes", 10) < classes:
        raise InputError(f"The images of --data {data} are of {classes} classes; leave classes= out of --archs, or give that.")
    return arch, cuts.training(data, channels), clean, evaluation


def _check_kept(training: Training) -> None:
    """Raises InputError where the victim's folder lacks a file, or holds one of other images or another normalisation."""
    if trained(training):
        _whole(Path(training.config.out), training.config.attack)
    kept: dict[str, object] = {}
    for path in (Path(training.config.out) / "card.json", Path(training.config.out) / UNFINISHED / "settings.json"):
        try:
            kept |= json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged; delete its folder, and the victim is trained again.") from error
    for name, what, asked in (("norm", "--norm", training.config.norm), ("data", "images as --data", training.fingerprint)):
        if kept.get(name, asked) != asked:
            raise InputError(f"{training.config.out} holds a victim trained with other {what}; give --out a new folder.")


def train(training: Training) -> None:
    """Train one victim; a killed training continues."""
    attack(training.config)


def trained(training: Training) -> bool:
    """Whether the victim is there already: its card is written last."""
    return (Path(training.config.out) / "card.json").exists()


def read_card(folder: Path) -> dict:
    """The card that onp.attack wrote beside a victim; raises InputError where there is none."""
    try:
        card = json.loads((folder / "card.json").read_text())
        if not {"attack", "arch", "norm", "target"} <= card.keys():
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder} holds no victim with a card.json of onp.attack; give such a folder, or '{BUNDLED}'."
        ) from error
    return dict(card)


def content(files: VictimFiles) -> dict[str, str | int | None]:
    """What figures of a victim depend on, in short: digests of its files and images, and how it is used."""
    return {
        "model": _file_digest(files.model),
        "trigger": _file_digest(files.trigger) if files.trigger else None,
        "clean images": digest(load_images(files.clean)),
        "evaluation images": digest(load_images(files.evaluation)),
        "network": files.arch,
        "normalisation": files.norm,
        "target": files.target,
    }


def _from_card(card: dict, name: str, folder: Path, data: str, clean: Path, evaluation: Path) -> VictimFiles:
    trigger = _whole(folder, card["attack"])
    Normalisation.parse(card["norm"])
    return VictimFiles(
        name,
        card["attack"],
        card["arch"],
        data,
        card["norm"],
        card["target"],
        str(folder / "model.safetensors"),
        str(trigger) if trigger else None,
        str(clean),
        str(evaluation),
    )


def _whole(folder: Path, attack: str) -> Path | None:
    """The trigger's file, None for a clean network; raises InputError where a file of the victim is missing."""
    # The card says what the victim is: a trigger may lie there from an earlier training.
    trigger = None if attack == "none" else folder / "trigger.safetensors"
    for path in filter(None, (folder / "model.safetensors", trigger)):
        if not path.exists():
            raise InputError(f"{folder} lacks {path.name}, but its card.json says attack {attack}; put it back.")
    return trigger


def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
