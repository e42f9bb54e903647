"""What `onp.attack` is given, checked before any work."""

from __future__ import annotations

import math

import torch

from onp.attack.config import AttackConfig
from onp.attack.training import load_weights
from onp.attack.triggers import TRIGGERS, Trigger
from onp.data.fingerprint import check_overlap, image_hashes
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.archs import option as arch_option
from onp.numerics import check_seed, resolve_device


def check(config: AttackConfig, train_set: ImageSet, test_set: ImageSet) -> type[Trigger] | None:
    """The kind of trigger to plant, None for a clean network.

    Raises:
        InputError: settings, images and networks that do not fit each other.
    """
    if config.attack != "none" and config.attack not in TRIGGERS:
        raise InputError(f"There is no attack '{config.attack}'; choose one of none, {', '.join(TRIGGERS)}.")
    kind = TRIGGERS.get(config.attack)
    _check_numbers(config, kind)
    _check_images(config, train_set, test_set)
    check_overlap(image_hashes(train_set), len(train_set), test_set, "test images")
    resolve_device(config.device)
    if kind is not None and not kind.all_to_all and bool((test_set.labels == config.target).all()):
        raise InputError("All test images are of the target class, so no ASR can be measured; give images of other classes.")
    if config.init is not None:
        load_weights(build_network(config.arch), config.init)
    if config.clean_model is not None:
        if kind is None or not kind.needs_network:
            needing = ", ".join(name for name, each in TRIGGERS.items() if each.needs_network)
            raise InputError(f"The attack {config.attack} starts from no clean network; --clean-model is for {needing}.")
        load_weights(build_network(config.arch), config.clean_model)
    return kind


def _check_numbers(config: AttackConfig, kind: type[Trigger] | None) -> None:
    given = [name for name in ("poison_rate", "cover_rate", "strength", "craft_epochs") if getattr(config, name) is not None]
    if kind is None and given:
        raise InputError(f"A clean network has no trigger; leave out --{given[0].replace('_', '-')}.")
    if config.epochs < 1 or config.batch_size < 2 or (config.craft_epochs is not None and config.craft_epochs < 1):
        raise InputError("--epochs and --craft-epochs must be at least 1, and --batch-size 2.")
    if not 0 < config.lr < math.inf:
        raise InputError(f"--lr is a number above 0, not {config.lr}.")
    shares = {"--smoothing": config.smoothing, "--averaging": config.averaging, "--weight-decay": config.weight_decay}
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} is a number from 0 and below 1, not {value}.")
    check_seed(config.seed)
    if kind is not None and config.strength is not None:
        kind.check_strength(config.strength)


def _check_images(config: AttackConfig, train_set: ImageSet, test_set: ImageSet) -> None:
    classes = arch_option(config.arch, "classes", 10)
    network, norm = build_network(config.arch).eval(), Normalisation.parse(config.norm)
    highest = max(int(train_set.labels.max()), int(test_set.labels.max()))
    if highest >= classes or not 0 <= config.target < classes:
        raise InputError(f"The network has {classes} classes; set classes=N in --arch to fit the labels and the target.")
    if len(train_set) < 2:
        raise InputError("There is 1 training image; batch norms need two at least.")
    (channels, height, width), other = train_set.images.shape[1:], test_set.images.shape[1:]
    if other != (channels, height, width):
        raise InputError(
            f"The training images are {height}x{width} pixels, the test images {other[1]}x{other[2]}; give images of one size."
        )
    if not 0 <= config.pad <= min(height, width):
        raise InputError(f"--pad is a number of pixels, 0 to {min(height, width)} for these images, not {config.pad}.")
    images = norm(train_set.subset([0]).pixels())
    try:
        with torch.no_grad():
            network(images)
    except RuntimeError as error:
        raise InputError(
            f"The network {config.arch} does not take images of {channels}x{height}x{width}; give others, or another --arch."
        ) from error
