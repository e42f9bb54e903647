"""Train a backdoored victim: `python -m onp.attack --attack badnets --arch preact_resnet18:width=32 ...`.

Writes `model.safetensors`, `trigger.safetensors` (the trigger belongs to this model) and `card.json` into `--out`.
Recipes: target class 0, trigger before augmentation (crop and flip), SGD with momentum 0.9 and weight decay 5e-4 as in
BackdoorBench (https://github.com/SCLBD/BackdoorBench), with a one-cycle learning rate so that few epochs do. Poison rates
and amplitudes are those that each attack was published with (`onp.attack.triggers`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from onp.attack.checks import check
from onp.attack.config import AttackConfig
from onp.attack.poisoning import choose, poisoner_for, with_rates
from onp.attack.training import device_for, load_weights, train
from onp.attack.triggers import TRIGGERS, Crafting, Trigger, load_trigger
from onp.attack.triggers.label_consistent import LabelConsistent, perturb
from onp.data.digest import digest
from onp.data.fingerprint import labelled_as, sample
from onp.data.images import ImageSet, Normalisation, load_images
from onp.errors import InputError
from onp.files import write_atomically
from onp.model.archs import NETWORKS, build_network, option
from onp.numerics import strict_float32
from onp.options import Parser

__all__ = ["AttackConfig", "main", "measure", "run", "train"]

UNFINISHED = "unfinished"  # folder inside --out with what a killed run goes on from


@torch.no_grad()
def measure(
    network: nn.Module,
    data: ImageSet,
    norm: Normalisation,
    trigger: Trigger | None,
    target: int,
    device: torch.device,
    batch: int = 500,
) -> dict[str, float]:
    """ACC on clean images, ASR and RA on triggered images that are not of the class they are led to; float32, eval mode.

    That class is `target`, or y + 1 for an all-to-all trigger, for which `target` plays no part; nan without such images.
    """
    network = network.eval().to(device)
    clean_hits = attack_hits = robust_hits = victims = 0
    for start in range(0, len(data), batch):
        part = data.subset(torch.arange(start, min(start + batch, len(data))))
        images, labels = part.pixels().to(device), part.labels
        logits = network(norm(images))
        clean_hits += int((logits.argmax(1).cpu() == labels).sum())
        if trigger is None:
            continue
        goals = trigger.goals(labels, target, logits.shape[1])
        other = labels != goals
        guess = network(norm(trigger(images[other.to(device)]))).argmax(1).cpu()
        attack_hits += int((guess == goals[other]).sum())
        robust_hits += int((guess == labels[other]).sum())
        victims += int(other.sum())
    result = {"acc": clean_hits / len(data)}
    if trigger is not None:
        result |= {name: hits / victims if victims else math.nan for name, hits in (("asr", attack_hits), ("ra", robust_hits))}
    return result


def run(
    config: AttackConfig, train_set: ImageSet, test_set: ImageSet, out: Path, init: Path | None = None, quiet: bool = False
) -> dict[str, float]:
    """Train, measure on `test_set` and write the three files into `out`; returns ACC, ASR and RA.

    Raises InputError when the settings do not fit each other or the images, before anything is written.
    """
    test_set = labelled_as(test_set, train_set.class_names, "The test data")
    kind = check(config, train_set, test_set, init)
    if kind is not None:
        config = with_rates(config, kind, train_set.labels)
    data, some = digest(train_set), sample(train_set)
    _spare(out, config, data)
    trigger, poisoner = None, None
    with _workplace(config, init, data, out) as work:
        if kind is not None:
            trigger, train_set = _crafted(kind, config, train_set, work, quiet)
            poisoner = poisoner_for(trigger, train_set.labels, config, option(config.arch, "classes", 10))
        network = train(train_set, config, poisoner, work / "training.pt", init, quiet)
        if poisoner is not None:
            trigger = poisoner.trigger
        weights = {key: _stored(value, config.dtype) for key, value in network.state_dict().items()}
        network.load_state_dict(weights)
        norm, device = Normalisation.parse(config.norm), device_for(config.device)
        with strict_float32():
            result = measure(network, test_set, norm, trigger, config.target, device)
        card = {
            **dataclasses.asdict(config),
            **result,
            "init": init is not None,
            "class_names": train_set.class_names,
            "data": data,
            "sample": some,
            "train_images": len(train_set),
            "test_images": len(test_set),
            "torch": torch.__version__,
        }
        _write(out, weights, trigger, card)
    return result


def _write(out: Path, weights: dict[str, Tensor], trigger: Trigger | None, card: dict[str, object]) -> None:
    """Write the victim; nothing of an earlier one stays, and the card, which says what the other files are, comes last."""
    for name in ("card.json", "trigger.safetensors"):
        (out / name).unlink(missing_ok=True)
    if trigger is not None:
        trigger.save(out / "trigger.safetensors")
    write_atomically(out / "model.safetensors", serialise(weights))
    write_atomically(out / "card.json", json.dumps(card, indent=2) + "\n")


def _spare(out: Path, config: AttackConfig, data: str) -> None:
    """Raise InputError where `out` holds another victim, which would be lost."""
    settings = dataclasses.asdict(config) | {"data": data}
    del settings["device"]
    card = _read(out / "card.json", {})
    for name in settings:
        if name in card and card[name] != settings[name]:
            now = f"{card[name]}, now {settings[name]}"
            raise InputError(f"{out} holds a victim with another {name} ({now}); give --out a new folder.")


@contextmanager
def _workplace(config: AttackConfig, init: Path | None, data: str, out: Path) -> Iterator[Path]:
    """The folder of an unfinished run with these settings, an old one or a new one; gone once the victim is written."""
    work = out / UNFINISHED
    note = work / "settings.json"
    settings = dataclasses.asdict(config) | {"init": str(init) if init else None, "data": data}
    found = _read(note, settings)
    if found != settings:
        changed = sorted(key for key in settings if found.get(key) != settings[key])
        raise InputError(
            f"{out} holds an unfinished run with another {', '.join(changed)}; repeat its command, or delete {work} first."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(settings) + "\n")
    except OSError as error:
        raise InputError(f"The folder {out} cannot be written ({error.strerror}); give --out another.") from error
    try:
        yield work
    except InputError:
        # What turns out wrong before anything was worked out is put right by other settings.
        if [path.name for path in work.iterdir()] == [note.name]:
            shutil.rmtree(work)
        raise
    shutil.rmtree(work)


def _read(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """The object in a file of JSON, `default` where there is no file; raises InputError for a damaged one."""
    try:
        return dict(json.loads(path.read_text())) if path.exists() else default
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete its folder, or give --out a new one.") from error


def _crafted(
    kind: type[Trigger], config: AttackConfig, train_set: ImageSet, work: Path, quiet: bool
) -> tuple[Trigger, ImageSet]:
    """The trigger and the images to train on; each is made once and kept in `work`."""
    trigger_file, images_file = work / "trigger.safetensors", work / "images.safetensors"
    perturbs = kind is LabelConsistent
    if trigger_file.exists() and (images_file.exists() or not perturbs):
        try:
            images = load_file(images_file)["images"] if perturbs else train_set.images
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{images_file} is damaged; delete it, and the images are made again.") from error
        return load_trigger(trigger_file), ImageSet(images, train_set.labels, train_set.class_names)
    generator = torch.Generator().manual_seed(config.seed)
    crafting = Crafting(
        images=train_set,
        target=config.target,
        generator=generator,
        device=device_for(config.device),
        strength=config.strength,
        epochs=config.craft_epochs,
        quiet=quiet,
    )
    if kind.needs_network:
        network = _clean_network(config, train_set, work, quiet).to(crafting.device)
        crafting = dataclasses.replace(crafting, network=network, norm=Normalisation.parse(config.norm))
    trigger = kind.craft(crafting)
    if perturbs:
        train_set = perturb(crafting, choose(train_set.labels, config, clean_label=True))
        write_atomically(images_file, serialise({"images": train_set.images}))
    trigger.save(trigger_file)
    return trigger, train_set


def _clean_network(config: AttackConfig, train_set: ImageSet, work: Path, quiet: bool) -> nn.Module:
    """The attacker's own network, of other random weights than the victim; without gradients, in eval mode."""
    if config.clean_model is not None:
        network = build_network(config.arch).eval()
        load_weights(network, config.clean_model)
    else:
        clean = dataclasses.replace(config, seed=config.seed + 1)
        network = train(train_set, clean, None, work / "clean.pt", quiet=quiet, stage="training a clean network")
    return network.requires_grad_(False)


def _stored(value: Tensor, dtype: str) -> Tensor:
    return value.to(getattr(torch, dtype)).contiguous() if value.is_floating_point() else value.contiguous()


def _parser() -> argparse.ArgumentParser:
    attacks = "\n".join(f"  {name:<17}{kind.summary}" for name, kind in TRIGGERS.items())
    parser = Parser(
        prog="python -m onp.attack",
        description="Train a backdoored victim for tests of defences.",
        epilog=f"attacks:\n{attacks}\n\nnetworks: {', '.join(NETWORKS)}",
    )
    parser.add_argument(
        "--data", required=True, help="training images (folder, archive, npz, IDX; FILE::train for a sub-folder)"
    )
    parser.add_argument("--test-data", required=True, help="images on which ACC, ASR and RA are measured")
    parser.add_argument("--out", required=True, type=Path, help="folder for the three files; a killed run continues from it")
    parser.add_argument("--init", type=Path, help="safetensors weights to start from instead of random ones")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    kinds = {"int": int, "float": float, "str": str}
    for field in dataclasses.fields(AttackConfig):
        more = dict(field.metadata)
        flag, text = "--" + field.name.replace("_", "-"), more.pop("help")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
            continue
        shown = "" if field.default is None else " (default: %(default)s)"
        kind = kinds[str(field.type).removesuffix(" | None")]
        parser.add_argument(flag, type=kind, default=field.default, help=text + shown, **more)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 for bad input."""
    options = vars(_parser().parse_args(arguments))
    data, test_data, out, init, quiet = (options.pop(key) for key in ("data", "test_data", "out", "init", "quiet"))
    try:
        config = AttackConfig(**options)
        channels = option(config.arch, "channels", 3)
        train_set, test_set = load_images(data, channels=channels), load_images(test_data, channels=channels)
        result = run(config, train_set, test_set, out, init, quiet)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: The folder {out} cannot be written ({error.strerror}); give --out another.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    print("  ".join(f"{key.upper()} {100 * value:.1f} %" for key, value in result.items()) + f"  -> {out}")
    return 0
