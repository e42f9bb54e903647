"""Train a backdoored victim: `onp attack --attack badnets --arch preact_resnet18:width=32 ...`.

Entry points: `attack(config)` reads the images and trains; `train_victim(config, train_set, test_set)` takes image sets. May
import data, model and engine, and nothing of the defence.

Recipes: target class 0, trigger before augmentation (crop and flip), SGD with momentum 0.9 and weight decay 5e-4 as in
BackdoorBench (https://github.com/SCLBD/BackdoorBench), with a one-cycle learning rate so that few epochs do. Poison rates
and amplitudes are those that each attack was published with (`onp.attack.triggers`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from onp.attack.checks import check
from onp.attack.config import AttackConfig
from onp.attack.folder import check_unused, unfinished_run, write_victim
from onp.attack.making import make_trigger
from onp.attack.measure import measure_victim
from onp.attack.poisoning import poisoner_for, with_rates
from onp.attack.training import train
from onp.attack.triggers import CraftingBudget
from onp.data.fingerprint import fingerprint, hash_sample
from onp.data.images import ImageSet, labelled_as, load_images
from onp.data.normalisation import Normalisation
from onp.files import check_apart
from onp.model.archs import option as arch_option
from onp.numerics import resolve_device, strict_float32

__all__ = ["AttackConfig", "attack", "train_victim"]


def attack(config: AttackConfig) -> dict[str, float]:
    """Train a victim on the images at `config.data` and write it into `config.out`; returns what `train_victim` does.

    Raises:
        InputError: something given cannot be used.
    """
    check_apart(Path(config.out), (config.data, config.test_data))
    channels = arch_option(config.arch, "channels", 3)
    train_set, test_set = (load_images(path, channels=channels) for path in (config.data, config.test_data))
    return train_victim(config, train_set, test_set)


def train_victim(
    config: AttackConfig, train_set: ImageSet, test_set: ImageSet, budget: CraftingBudget = CraftingBudget()
) -> dict[str, float]:
    """Train, measure and write the victim, see `onp.attack.folder.write_victim`, into the folder `config.out`.

    Args:
        config: all but `data` and `test_data`, in whose place the image sets are.
        train_set: the images to poison and to train on.
        test_set: other images to measure on.
        budget: how much work goes into fitting the trigger.

    Returns:
        ACC, and with a trigger ASR and RA, as shares of the test images.

    Raises:
        InputError: the settings do not fit each other or the images; nothing is written then.
    """
    test_set = labelled_as(test_set, train_set.class_names, "The test data")
    kind = check(config, train_set, test_set)
    if kind is not None:
        config = with_rates(config, kind, train_set.labels)
    data, some, out = fingerprint(train_set), hash_sample(train_set), Path(config.out)
    check_unused(out, config, data)
    trigger, poisoner = None, None
    with unfinished_run(config, data) as work:
        if kind is not None:
            trigger, train_set = make_trigger(kind, config, train_set, work, budget)
            poisoner = poisoner_for(trigger, train_set.labels, config, arch_option(config.arch, "classes", 10))
        network = train(train_set, config, poisoner, work / "training.pt")
        if poisoner is not None:
            trigger = poisoner.trigger
        weights = {key: _stored(value, config.dtype) for key, value in network.state_dict().items()}
        network.load_state_dict(weights)
        network, norm = network.to(resolve_device(config.device)), Normalisation.parse(config.norm)
        with strict_float32():
            figures = measure_victim(network, test_set, norm, trigger, config.target)
        card = {
            **config.settings(),
            **figures,
            "init": config.init is not None,
            "class_names": train_set.class_names,
            "data": data,
            "train_images": len(train_set),
            "test_images": len(test_set),
            "torch": torch.__version__,
        }
        write_victim(out, weights, trigger, some, card)
    return figures


def _stored(value: Tensor, dtype: str) -> Tensor:
    return value.to(getattr(torch, dtype)).contiguous() if value.is_floating_point() else value.contiguous()
