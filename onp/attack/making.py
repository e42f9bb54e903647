"""Making the trigger of an attack: drawn, or fitted to the training images and a clean network of the attacker's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from onp.attack.config import AttackConfig
from onp.attack.poisoning import choose_poisoned
from onp.attack.training import load_weights, train
from onp.attack.triggers import Crafting, CraftingBudget, LabelConsistent, Trigger, load_trigger
from onp.attack.triggers.label_consistent import perturb
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.files import write_atomically
from onp.model.archs import build_network
from onp.numerics import resolve_device


def make_trigger(
    kind: type[Trigger], config: AttackConfig, train_set: ImageSet, work: Path, budget: CraftingBudget
) -> tuple[Trigger, ImageSet]:
    """The trigger and the images to train on.

    Args:
        kind: of the trigger.
        config: with rates.
        train_set: the clean training images.
        work: folder of the unfinished run, which keeps both; they are read from there where it has them.
        budget: how much work goes into fitting.

    Raises:
        InputError: a file in `work` is damaged, or the trigger cannot be fitted.
    """
    trigger_file, images_file = work / "trigger.safetensors", work / "images.safetensors"
    perturbs = kind is LabelConsistent
    if trigger_file.exists() and (images_file.exists() or not perturbs):
        try:
            images = load_file(images_file)["images"] if perturbs else train_set.images
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{images_file} is damaged; delete it, and the images are made again.") from error
        return load_trigger(trigger_file), dataclasses.replace(train_set, images=images)
    crafting = Crafting(
        images=train_set,
        target=config.target,
        generator=torch.Generator().manual_seed(config.seed),
        device=resolve_device(config.device),
        strength=config.strength,
        epochs=config.craft_epochs,
        budget=budget,
        quiet=config.quiet,
    )
    if kind.needs_network:
        network = _clean_network(config, train_set, work).to(crafting.device)
        crafting = dataclasses.replace(crafting, network=network, norm=Normalisation.parse(config.norm))
    trigger = kind.craft(crafting)
    if perturbs:
        train_set = perturb(crafting, choose_poisoned(train_set.labels, config, clean_label=True))
        write_atomically(images_file, serialise({"images": train_set.images}))
    trigger.save(trigger_file)
    return trigger, train_set


def _clean_network(config: AttackConfig, train_set: ImageSet, work: Path) -> nn.Module:
    """The attacker's own network, of other random weights than the victim; without gradients, in eval mode."""
    if config.clean_model is not None:
        network = build_network(config.arch).eval()
        load_weights(network, config.clean_model)
    else:
        clean = dataclasses.replace(config, seed=config.seed + 1, init=None)
        network = train(train_set, clean, None, work / "clean.pt", "training a clean network")
    return network.requires_grad_(False)
