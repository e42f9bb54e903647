"""The training loop of victims, poisoned or clean."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from onp import progress
from onp.attack.config import AttackConfig
from onp.attack.poisoning import Poisoner, poisoner_for
from onp.attack.triggers import Trigger
from onp.data.augment import shifted
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.archs import build_network, option
from onp.numerics import resolve_device

REPORT_EVERY = 10  # steps; reading the loss waits for the device


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop after zero padding and random flip, per image; `[N, C, H, W]` to the same shape, channels last."""
    offsets = [torch.randint(0, 2 * pad + 1, (len(images), 1), generator=generator) for _ in range(2)]
    mirrored = torch.rand((len(images), 1), generator=generator) < 0.5 if flip else None
    return shifted(images, torch.cat(offsets, dim=1), pad, mirrored=mirrored)


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """`order` int64 `[N]` in batches of `size`; a last image by itself, which has no spread to norm, joins those before."""
    batches = list(order.split(size))
    return [*batches[:-2], torch.cat(batches[-2:])] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def epoch_generator(config: AttackConfig, epoch: int) -> torch.Generator:
    """The generator of an epoch, whose first draw is the order of the images.

    It is never seeded as `choose_poisoned` is, whose permutation would put all poisoned images first.
    """
    return torch.Generator().manual_seed(config.seed * 1000 + epoch + 1)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill `network` with the weights of a safetensors file of the same architecture.

    Raises:
        InputError: the file is missing, is none, or belongs to another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} does not hold safetensors weights of this --arch; give a model.safetensors.") from error


def _has_matrix_units(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def train(
    train_set: ImageSet,
    config: AttackConfig,
    poisoner: Poisoner | Trigger | None,
    state_file: Path | None = None,
    stage: str = "training",
) -> nn.Module:
    """Train one network.

    Args:
        train_set: the images, not yet poisoned.
        config: the recipe; `init` is a safetensors file of weights to start from (an attacker who fine-tunes a clean model).
        poisoner: changes the images of each batch; for a trigger it is the one of its attack, None trains a clean network.
        state_file: keeps the state after each epoch, and training continues from it where it exists.
        stage: name of the progress bar.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        InputError: a file cannot be used.
    """
    if isinstance(poisoner, Trigger):
        poisoner = poisoner_for(poisoner, train_set.labels, config, option(config.arch, "classes", 10))
    torch.manual_seed(config.seed)
    device, norm = resolve_device(config.device), Normalisation.parse(config.norm)
    network = build_network(config.arch)
    if config.init is not None:
        load_weights(network, config.init)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    there = dataclasses.replace(train_set, images=train_set.images.to(device))
    optimiser = _optimiser(network, config)
    average = _average(network, config.averaging)
    optimisers = [optimiser, *(poisoner.optimisers if poisoner else [])]
    steps = len(batches_of(torch.arange(len(train_set)), config.batch_size))
    total = max(4, steps * config.epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=total, pct_start=max(0.25, 2 / total))
    start = 0
    if state_file is not None and state_file.exists():
        state = _read_state(state_file)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        if poisoner:
            poisoner.load_state_dict(state["poisoner"])
        if average is not None:
            average.load_state_dict(state["average"])
        start = state["epoch"]
    with progress.stage(stage, steps * (config.epochs - start), config.quiet) as bar:
        for epoch in range(start, config.epochs):
            generator = epoch_generator(config, epoch)
            network.train()
            batches = batches_of(torch.randperm(len(train_set), generator=generator), config.batch_size)
            for step, index in enumerate(batches):
                part = there.subset(index)
                images, labels = part.pixels(), part.labels
                penalty: Tensor | float = 0.0
                if poisoner:
                    images, labels, penalty = poisoner(images, labels, index, generator)
                images = norm(augment(images, config.pad, config.flip, generator))
                with torch.autocast(device.type, torch.bfloat16, enabled=_has_matrix_units(device)):
                    loss = F.cross_entropy(network(images), labels.to(device), label_smoothing=config.smoothing) + penalty
                for each in optimisers:
                    each.zero_grad()
                loss.backward()
                for each in optimisers:
                    each.step()
                schedule.step()
                if average is not None:
                    average.update_parameters(network)
                if step % REPORT_EVERY == 0:
                    note = f"epoch {epoch + 1}/{config.epochs} loss {loss.item():.3f}"
                bar.advance(note=note)
            if state_file is not None:
                state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
                state |= {"schedule": schedule.state_dict(), "poisoner": poisoner.state_dict() if poisoner else {}}
                state |= {} if average is None else {"average": average.state_dict()}
                _write_state(state, state_file)
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    return network.eval().to("cpu", memory_format=torch.contiguous_format)


def _optimiser(network: nn.Module, config: AttackConfig) -> torch.optim.Optimizer:
    if config.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(network.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=True)


def _average(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of weights and norm statistics; None for none."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged; delete it, and its training starts again.") from error


def _write_state(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, path)
