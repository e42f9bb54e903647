"""Train a backdoored victim: `python -m onp.attack --attack badnets --arch preact_resnet18:width=32 ...`.

Writes `model.safetensors`, `trigger.safetensors` (the trigger belongs to this model) and `card.json` into `--out`.
Recipes: target class 0, trigger before augmentation (crop and flip), SGD with momentum 0.9 and weight decay 5e-4 as in
BackdoorBench (https://github.com/SCLBD/BackdoorBench), with a one-cycle learning rate so that few epochs do. Poison rates
and amplitudes are those that each attack was published with (`onp.triggers`).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from onp.archs import NETWORKS, build_network, option
from onp.arithmetic import strict_float32
from onp.attack_config import AttackConfig
from onp.config import Parser
from onp.data import ImageSet, Normalisation, load_images
from onp.errors import InputError
from onp.files import write_atomically
from onp.poisoning import choose, poisoner_for, with_rates
from onp.training import device_for, load_weights, train
from onp.triggers import TRIGGERS, Crafting, Trigger, load_trigger
from onp.triggers.label_consistent import LabelConsistent, perturb

__all__ = ["AttackConfig", "main", "measure", "run", "train"]

SHARED = 0.1  # of the test images may be training images: benchmarks have a few twins
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
    test_set = test_set.relabelled(train_set.class_names)
    kind = _checked(config, train_set, test_set)
    if kind is not None:
        config = with_rates(config, kind, train_set.labels)
    _spare(out, config)
    work = _workplace(config, init, train_set, out)
    trigger, poisoner = None, None
    if kind is not None:
        trigger, train_set = _crafted(kind, config, train_set, work, quiet)
        poisoner = poisoner_for(trigger, train_set.labels, config, option(config.arch, "classes", 10))
    network = train(train_set, config, poisoner, work / "training.pt", init, quiet)
    if poisoner is not None:
        trigger = poisoner.trigger
    weights = {key: _stored(value, config.dtype) for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    with strict_float32():
        result = measure(network, test_set, Normalisation.parse(config.norm), trigger, config.target, device_for(config.device))
    if trigger is not None:
        trigger.save(out / "trigger.safetensors")
    write_atomically(out / "model.safetensors", serialise(weights))
    card = {
        **dataclasses.asdict(config),
        **result,
        "init": init is not None,
        "class_names": train_set.class_names,
        "train_images": len(train_set),
        "test_images": len(test_set),
        "torch": torch.__version__,
    }
    write_atomically(out / "card.json", json.dumps(card, indent=2) + "\n")
    shutil.rmtree(work)
    return result


def _checked(config: AttackConfig, train_set: ImageSet, test_set: ImageSet) -> type[Trigger] | None:
    """The kind of trigger to plant, None for a clean network; raises InputError for settings that cannot work."""
    if config.attack != "none" and config.attack not in TRIGGERS:
        raise InputError(f"There is no attack '{config.attack}'; choose one of none, {', '.join(TRIGGERS)}.")
    _check_numbers(config)
    classes = option(config.arch, "classes", 10)
    if int(train_set.labels.max()) >= classes or not 0 <= config.target < classes:
        raise InputError(f"The network has {classes} classes; set classes=N in --arch to fit the labels and the target.")
    if len(train_set) < 2:
        raise InputError(f"There are {len(train_set)} training images; batch norms need two at least.")
    known = {image.tobytes() for image in train_set.images.numpy()}
    both = sum(image.tobytes() in known for image in test_set.images.numpy())
    if both > SHARED * len(test_set):
        raise InputError(f"{both} of the {len(test_set)} test images are among the training images; give others.")
    device_for(config.device)
    kind = TRIGGERS.get(config.attack)
    if kind is not None and not kind.all_to_all and bool((test_set.labels == config.target).all()):
        raise InputError("All test images are of the target class, so no ASR can be measured; give images of other classes.")
    if config.clean_model is not None:
        if kind is None or not kind.needs_network:
            needing = ", ".join(name for name, each in TRIGGERS.items() if each.needs_network)
            raise InputError(f"The attack {config.attack} starts from no clean network; --clean-model is for {needing}.")
        load_weights(build_network(config.arch), config.clean_model)
    return kind


def _check_numbers(config: AttackConfig) -> None:
    kind = TRIGGERS.get(config.attack)
    given = [name for name in ("poison_rate", "cover_rate", "strength", "craft_epochs") if getattr(config, name) is not None]
    if kind is None and given:
        raise InputError(f"A clean network has no trigger; leave out --{given[0].replace('_', '-')}.")
    if config.epochs < 1 or config.batch_size < 2 or (config.craft_epochs or 1) < 1:
        raise InputError("--epochs and --craft-epochs must be at least 1, and --batch-size 2.")
    if not 0 < config.lr < math.inf:
        raise InputError(f"--lr is a number above 0, not {config.lr}.")
    if config.pad < 0:
        raise InputError(f"--pad is a number of pixels, 0 or more, not {config.pad}.")
    if not 0 <= config.seed < 2**31:
        raise InputError(f"--seed is a number from 0 to {2**31 - 1}, not {config.seed}.")
    if kind is not None and config.strength is not None and not 0 < config.strength <= kind.strongest:
        raise InputError(f"--strength of {config.attack} is above 0 and at most {kind.strongest:g}, not {config.strength}.")


def _spare(out: Path, config: AttackConfig) -> None:
    """Raise InputError where `out` holds another victim, which would be lost."""
    try:
        card = json.loads((out / "card.json").read_text()) if (out / "card.json").exists() else {}
    except ValueError:
        card = {"attack": "unknown"}
    settings = dataclasses.asdict(config)
    changed = [name for name in settings if name in card and name != "device" and card[name] != settings[name]]
    if changed:
        name = changed[0]
        now = f"{card[name]}, now {settings[name]}"
        raise InputError(f"{out} holds a victim with another {name} ({now}); give --out a new folder.")


def _workplace(config: AttackConfig, init: Path | None, train_set: ImageSet, out: Path) -> Path:
    """The folder of an unfinished run with these settings, an old one or a new one."""
    work = out / UNFINISHED
    data = hashlib.sha256(train_set.images.contiguous().numpy().tobytes())
    data.update(train_set.labels.numpy().tobytes())
    settings = dataclasses.asdict(config) | {"init": str(init) if init else None, "data": data.hexdigest()}
    note = work / "settings.json"
    try:
        found = json.loads(note.read_text()) if note.exists() else settings
    except ValueError:
        found = {}
    if found != settings:
        changed = sorted(key for key in settings if found.get(key) != settings[key])
        raise InputError(
            f"{out} holds an unfinished run with another {', '.join(changed)}; repeat its command, or delete {work} first."
        )
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(settings) + "\n")
    return work


def _crafted(
    kind: type[Trigger], config: AttackConfig, train_set: ImageSet, work: Path, quiet: bool
) -> tuple[Trigger, ImageSet]:
    """The trigger and the images to train on; each is made once and kept in `work`."""
    trigger_file, images_file = work / "trigger.safetensors", work / "images.safetensors"
    perturbs = kind is LabelConsistent
    if trigger_file.exists() and (images_file.exists() or not perturbs):
        images = load_file(images_file)["images"] if perturbs else train_set.images
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


if __name__ == "__main__":
    sys.exit(main())
