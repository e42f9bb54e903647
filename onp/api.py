"""The calls for a notebook: a live network, images and labels in; evidence or a repair out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onp.data.images import ImageSet, Normalisation, check_for, split
from onp.defend import Outcome, preset_of, run
from onp.defend.config import DefendConfig
from onp.defend.inputs import Case, check_useful
from onp.defend.monitor import Monitor
from onp.defend.rounds import look
from onp.detect.anomaly import Scan
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import pruned_rows
from onp.model.victim import Victim, victim_from_module
from onp.numerics import strict_float32

Images = Tensor | np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What the scan found; sees clean images only."""

    backdoored: bool  #: whether the suspect's suspicion reaches the threshold
    suspect: int  #: the class that is easiest to reach
    suspicion: tuple[float, ...]  #: per class: what the witnesses say beyond 1, added up, of each at most 2.5
    witnesses: dict[str, tuple[float, ...]]  #: what each witness says about each class
    threshold: float


@strict_float32()
def detect(
    model: nn.Module,
    images: Images,
    labels: Tensor | np.ndarray | Sequence[int],
    *,
    norm: str,
    preset: str = "default",
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Evidence:
    """Tell whether `model` is backdoored, and towards which class; takes and gives what `mitigate` does, minus the repair."""
    config = DefendConfig(norm=norm, preset=preset, seed=seed, quiet=quiet)
    chosen = preset_of(config)
    case = _case(model, images, labels, class_names, config)
    found: Scan = look(case.victim, case.splits, config, chosen, Monitor(quiet)).scan
    suspicion = found.suspicion
    return Evidence(max(suspicion) >= chosen.bank.threshold, found.suspect, suspicion, found.witnesses, chosen.bank.threshold)


def mitigate(
    model: nn.Module,
    images: Images,
    labels: Tensor | np.ndarray | Sequence[int],
    *,
    norm: str,
    preset: str = "default",
    max_acc_drop: float = 0.01,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Outcome:
    """Look for a backdoor in a live network and repair a copy of it; `model` itself is not changed.

    Args:
        model: a classifier of normalised images `[N, C, H, W]` that returns logits `[N, classes]`; computed with in float32
            on the device it is on.
        images: a few hundred clean ones, not normalised: uint8, or floats in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` or
            `[N, H, W]`, tensor or array.
        labels: `[N]` integers, the classes as the network counts them.
        norm: the normalisation of the model's training: a preset such as "cifar10" or "imagenet", or "MEAN/STD".
        preset: "fast", "default", "thorough" or "paper".
        max_acc_drop: accuracy that the repair may cost, as a share of the images.
        class_names: names by class, for the report.
        seed: same seed, same machine: same mask.
        quiet: no progress.

    Returns:
        An `Outcome`: `report`, `mask`, `network` (the repaired copy), and `html()` for the page, which a notebook shows.

    Raises:
        InputError: something given cannot be used.
    """
    config = DefendConfig(norm=norm, preset=preset, max_acc_drop=max_acc_drop, seed=seed, quiet=quiet)
    chosen = preset_of(config)
    return run(_case(model, images, labels, class_names, config), config, chosen, Monitor(quiet))


@dataclass(frozen=True, eq=False)
class Applied:
    """What `apply` replaced: (parameter, rows bool `[K]`, the values that were there)."""

    replaced: tuple[tuple[Tensor, Tensor, Tensor], ...]


def apply(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> Applied:
    """Prune the units of `mask` in the live `model`, in place: their weights, biases and norm parameters become zero.

    Args:
        mask: of an `Outcome`, or `load_mask("mask.json")`.
        input_shape: (C, H, W) of its images; needed to find out which norm belongs to which layer.

    Returns:
        What `undo` needs to put everything back.

    Raises:
        InputError: the mask is one of another network.
    """
    if not isinstance(mask, Mask):
        raise InputError(f"The mask is a {type(mask).__name__}; give that of an outcome, or onp.load_mask of a mask.json.")
    if not isinstance(input_shape, Sequence) or len(input_shape) != 3:
        raise InputError(f"The input shape is {input_shape}; give channels, height and width of one image.")
    shape = tuple(int(size) for size in input_shape)
    device = next(model.parameters()).device
    victim = victim_from_module(model, Normalisation.parse("none"), shape, device=device)
    mask.check(victim)
    state, replaced = model.state_dict(keep_vars=True), []
    with torch.no_grad():
        for key, rows in pruned_rows(victim, mask).items():
            rows = rows.to(state[key].device)
            replaced.append((state[key], rows, state[key][rows].clone()))
            state[key][rows] = 0
    return Applied(tuple(replaced))


def undo(applied: Applied) -> None:
    """Put back, bit by bit, what `apply` replaced."""
    with torch.no_grad():
        for tensor, rows, values in reversed(applied.replaced):
            tensor[rows] = values.to(tensor)


def _case(
    model: nn.Module,
    images: Images,
    labels: Tensor | np.ndarray | Sequence[int],
    class_names: Sequence[str] | None,
    config: DefendConfig,
) -> Case:
    if not isinstance(model, nn.Module):
        raise InputError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("The model is a TorchScript program, whose units cannot be pruned; give the network it was made from.")
    if not isinstance(config.norm, str):
        raise InputError("Say with norm how the model's images are normalised: a preset such as cifar10, or MEAN/STD.")
    pixels, classes = _pixels(images), _labels(labels)
    if classes.shape != (len(pixels),) or classes.is_floating_point():
        raise InputError(f"The labels are {classes.dtype} {list(classes.shape)}; one integer for each image is needed.")
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    first = next(model.parameters(), None)
    if first is None:
        raise InputError("The model has no parameters, so there is nothing to prune.")
    victim: Victim = victim_from_module(
        model, Normalisation.parse(str(config.norm)), shape, device=first.device, arch=type(model).__name__
    )
    names = tuple(map(str, range(victim.classes))) if class_names is None else tuple(class_names)
    if len(names) > victim.classes:
        raise InputError(f"There are {len(names)} class names, and the model has {victim.classes} classes; give one for each.")
    clean = ImageSet(pixels, classes.long().cpu(), names)
    if int(clean.labels.min()) < 0 or int(clean.labels.max()) >= len(names):
        raise InputError(
            f"The labels must be 0 to {len(names) - 1}; they go from {clean.labels.min()} to {clean.labels.max()}."
        )
    check_for(clean, victim.classes, victim.input_shape)
    check_useful(victim, clean)
    return Case(victim, clean, split(clean, config.seed), None, None, None)


def _labels(labels: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    try:
        return torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("The labels are no numbers; give the number of each image's class, as the network counts.") from error


def _pixels(images: Images) -> Tensor:
    """uint8 `[N, C, H, W]` on the CPU."""
    try:
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The images are of type {type(images).__name__}; give one tensor or array [N, C, H, W].") from error
    tensor = tensor[:, None] if tensor.dim() == 3 else tensor
    if tensor.dim() != 4 or not len(tensor):
        raise InputError(f"The images have the shape {list(tensor.shape)}; give [N, C, H, W].")
    if tensor.shape[1] not in (1, 3) and tensor.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.is_floating_point():
        if not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise InputError(
                f"The images go from {tensor.min():.2f} to {tensor.max():.2f}; "
                "give them before normalisation, in [0, 1] or uint8."
            )
        tensor = (tensor * 255).round()
    elif tensor.dtype != torch.uint8:
        raise InputError(f"The images are {tensor.dtype}; give uint8, or floats in [0, 1].")
    return tensor.to(torch.uint8).contiguous()
