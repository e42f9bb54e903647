"""Train a backdoored victim: `python -m onp.attack --attack badnets --arch preact_resnet18:width=32 ...`.

Writes `model.safetensors`, `trigger.safetensors` (the trigger belongs to this model) and `card.json` into `--out`.
Recipes: poison rate 0.1, target class 0, trigger before augmentation (crop and flip), SGD with momentum 0.9 and weight
decay 5e-4 as in BackdoorBench (https://github.com/SCLBD/BackdoorBench), with a one-cycle learning rate so that few epochs do.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from onp import progress
from onp.archs import build_network, option
from onp.data import ImageSet, Normalisation, load_images
from onp.errors import InputError
from onp.files import write_atomically
from onp.triggers import TRIGGERS, Trigger, WaNet


@dataclass(frozen=True)
class AttackConfig:
    """How a victim is trained; every field is an option of the command line."""

    attack: str = "badnets"  #: badnets, blended, wanet, or none for a clean model
    arch: str = "preact_resnet18:width=32"  #: a built-in network
    norm: str = "cifar10"  #: normalisation preset or mean/std
    target: int = 0  #: class that the trigger leads to
    poison_rate: float = 0.1  #: share of the training images that carry the trigger
    cover_rate: float = 0.2  #: WaNet only: share of images warped by noise that keep their label
    strength: float | None = None  #: amplitude of the trigger instead of the published one (WaNet s, Blended alpha)
    epochs: int = 20  #: passes over the training images
    batch_size: int = 128  #: images a step
    lr: float = 0.1  #: peak learning rate of the one-cycle schedule
    pad: int = 4  #: random crop after padding by this many pixels
    flip: bool = True  #: random horizontal flips
    seed: int = 0  #: seeds weights, poison choice, trigger and order
    device: str = "auto"  #: auto, cpu or cuda
    dtype: str = "float32"  #: precision of the saved weights, float32 or float16; the figures are those of the saved ones


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop after zero padding and random flip, per image; `[N, C, H, W]` to the same shape, channels last."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    rows = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator) + torch.arange(width)
    if flip:
        flipped = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    picked = padded[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def poison(
    images: Tensor, labels: Tensor, chosen: Tensor, trigger: Trigger, config: AttackConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put the trigger on the `chosen` images (bool `[N]`) and give them the target label; add WaNet's cover images."""
    images, labels = images.clone(), labels.clone()
    if isinstance(trigger, WaNet):
        cover = ~chosen & (torch.rand(len(labels), generator=generator) < config.cover_rate)
        images[cover] = trigger.noise(images[cover], generator)
    images[chosen] = trigger(images[chosen])
    labels[chosen] = config.target
    return images, labels


def choose(count: int, config: AttackConfig) -> Tensor:
    """Which of `count` training images carry the trigger, bool `[count]`."""
    chosen = torch.zeros(count, dtype=torch.bool)
    picks = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    chosen[picks[: round(config.poison_rate * count)]] = True
    return chosen


def epoch_generator(config: AttackConfig, epoch: int) -> torch.Generator:
    """Draws an epoch's order first; never seeded as `choose` is, whose permutation would put all poisoned images first."""
    return torch.Generator().manual_seed(config.seed * 1000 + epoch + 1)


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
    """ACC on clean images, ASR and RA on triggered images whose true label is not the target; float32, eval mode."""
    network.eval()
    clean_hits = attack_hits = robust_hits = victims = 0
    for start in range(0, len(data), batch):
        part = data.subset(torch.arange(start, min(start + batch, len(data))))
        images, labels = part.pixels(), part.labels
        clean_hits += int((network(norm(images).to(device)).argmax(1).cpu() == labels).sum())
        if trigger is None:
            continue
        other = labels != target
        guess = network(norm(trigger(images[other])).to(device)).argmax(1).cpu()
        attack_hits += int((guess == target).sum())
        robust_hits += int((guess == labels[other]).sum())
        victims += int(other.sum())
    result = {"acc": clean_hits / len(data)}
    if trigger is not None:
        result |= {"asr": attack_hits / max(victims, 1), "ra": robust_hits / max(victims, 1)}
    return result


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("This machine has no usable CUDA device; use --device cpu.")
    return torch.device(name)


def _has_matrix_units(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def train(
    train_set: ImageSet,
    config: AttackConfig,
    trigger: Trigger | None,
    state_file: Path | None = None,
    init: Path | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Train one network and return it in eval mode on the CPU.

    `state_file` keeps the state after each epoch, and training continues from it where it exists; `init` is a safetensors
    file of weights to start from (an attacker who fine-tunes somebody's clean model).
    """
    torch.manual_seed(config.seed)
    device, norm = _device(config.device), Normalisation.parse(config.norm)
    network = build_network(config.arch)
    if init is not None:
        network.load_state_dict(load_file(init))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    optimiser = torch.optim.SGD(network.parameters(), config.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = -(-len(train_set) // config.batch_size)
    total = max(4, steps * config.epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=total, pct_start=max(0.25, 2 / total))
    chosen = choose(len(train_set), config) if trigger is not None else torch.zeros(len(train_set), dtype=torch.bool)
    start = 0
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start = state["epoch"]
    with progress.stage("training", steps * (config.epochs - start), quiet) as bar:
        for epoch in range(start, config.epochs):
            generator = epoch_generator(config, epoch)
            network.train()
            for index in torch.randperm(len(train_set), generator=generator).split(config.batch_size):
                part = train_set.subset(index)
                images, labels = part.pixels(), part.labels
                if trigger is not None:
                    images, labels = poison(images, labels, chosen[index], trigger, config, generator)
                images = norm(augment(images, config.pad, config.flip, generator)).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=_has_matrix_units(device)):
                    loss = F.cross_entropy(network(images), labels.to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.advance(note=f"epoch {epoch + 1}/{config.epochs} loss {loss.item():.3f}")
            if state_file is not None:
                partial = state_file.with_suffix(".tmp")
                state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
                torch.save(state | {"schedule": schedule.state_dict()}, partial)
                partial.replace(state_file)
    return network.eval().to("cpu", memory_format=torch.contiguous_format)


def _stored(value: Tensor, dtype: str) -> Tensor:
    return value.to(getattr(torch, dtype)).contiguous() if value.is_floating_point() else value.contiguous()


def run(
    config: AttackConfig, train_set: ImageSet, test_set: ImageSet, out: Path, init: Path | None = None, quiet: bool = False
) -> dict[str, float]:
    """Train, measure on `test_set` and write the three files into `out`; returns ACC, ASR and RA."""
    if config.attack != "none" and config.attack not in TRIGGERS:
        raise InputError(f"There is no attack '{config.attack}'; choose one of none, {', '.join(TRIGGERS)}.")
    classes = option(config.arch, "classes", 10)
    if int(train_set.labels.max()) >= classes or not 0 <= config.target < classes:
        raise InputError(f"The network has {classes} classes; set classes=N in --arch to fit the labels and the target.")
    shape = (train_set.images.shape[1], train_set.images.shape[2], train_set.images.shape[3])
    generator = torch.Generator().manual_seed(config.seed)
    trigger = None if config.attack == "none" else TRIGGERS[config.attack].make(shape, generator, config.strength)
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.pt"
    network = train(train_set, config, trigger, state_file, init, quiet)
    weights = {key: _stored(value, config.dtype) for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    result = measure(network, test_set, Normalisation.parse(config.norm), trigger, config.target, torch.device("cpu"))
    if trigger is not None:
        trigger.save(out / "trigger.safetensors")
    write_atomically(out / "model.safetensors", serialise(weights))
    card = {
        **dataclasses.asdict(config),
        **result,
        "init": init is not None,
        "train_images": len(train_set),
        "test_images": len(test_set),
        "torch": torch.__version__,
    }
    write_atomically(out / "card.json", json.dumps(card, indent=2) + "\n")
    state_file.unlink(missing_ok=True)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m onp.attack", description="Train a backdoored victim for tests of defences."
    )
    parser.add_argument(
        "--data", required=True, help="training images (folder, archive, npz, IDX; FILE::train for a sub-folder)"
    )
    parser.add_argument("--test-data", required=True, help="images on which ACC, ASR and RA are measured")
    parser.add_argument("--out", required=True, type=Path, help="folder for the three files; a killed run continues from it")
    parser.add_argument("--init", type=Path, help="safetensors weights to start from instead of random ones")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    defaults = AttackConfig()
    parser.add_argument("--attack", default=defaults.attack, choices=["none", *TRIGGERS], help="recipe (default: %(default)s)")
    for field, text in (
        ("arch", "built-in network"),
        ("norm", "normalisation preset or mean/std"),
        ("device", "auto, cpu or cuda"),
    ):
        parser.add_argument(f"--{field}", default=getattr(defaults, field), help=f"{text} (default: %(default)s)")
    for field, text in (
        ("target", "target class"),
        ("epochs", "passes over the data"),
        ("batch_size", "images a step"),
        ("pad", "pixels of padding before the random crop"),
        ("seed", "seed of everything"),
    ):
        parser.add_argument(
            f"--{field.replace('_', '-')}", type=int, default=getattr(defaults, field), help=f"{text} (default: %(default)s)"
        )
    for field, text in (
        ("poison_rate", "share of poisoned images"),
        ("cover_rate", "WaNet's share of noise images"),
        ("lr", "peak learning rate"),
        ("strength", "amplitude instead of the published one"),
    ):
        parser.add_argument(
            f"--{field.replace('_', '-')}", type=float, default=getattr(defaults, field), help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--dtype", default=defaults.dtype, choices=["float32", "float16"], help="precision of the saved weights"
    )
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="random horizontal flips")
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
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    print("  ".join(f"{key.upper()} {100 * value:.1f} %" for key, value in result.items()) + f"  -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
