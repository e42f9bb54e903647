"""A case from values in memory: a live network, images and labels as tensors or arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onp.data.images import ImageSet, check_for, split
from onp.data.normalisation import Normalisation
from onp.defend.case import Case
from onp.defend.run import Run
from onp.defend.sanity import check_useful
from onp.errors import InputError
from onp.model.victim import victim_from_module


@dataclass(frozen=True, eq=False)
class Given:
    """What the caller gave, not checked."""

    model: nn.Module
    images: Tensor | np.ndarray  #: uint8, or floats in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`
    labels: Tensor | np.ndarray | Sequence[int]  #: `[N]`
    class_names: Sequence[str] | None = None  #: by label


def case_from_memory(given: Given, run: Run) -> Case:
    """Check what was given, and split the images.

    Args:
        given: network, images and labels.
        run: seed, and the normalisation among the options.

    Raises:
        InputError: something cannot be used.
    """
    norm, model = run.config.norm, given.model
    if not isinstance(model, nn.Module):
        raise InputError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("The model is a TorchScript program, whose units cannot be pruned; give the network it was made from.")
    if not isinstance(norm, str):
        raise InputError("Say with norm how the model's images are normalised: a preset such as cifar10, or MEAN/STD.")
    pixels, labels = _pixels(given.images), _labels(given.labels)
    if labels.shape != (len(pixels),) or labels.is_floating_point():
        raise InputError(f"The labels are {labels.dtype} {list(labels.shape)}; one integer for each image is needed.")
    first = next(model.parameters(), None)
    if first is None:
        raise InputError("The model has no parameters, so there is nothing to prune.")
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    normalisation, arch = Normalisation.parse(norm), type(model).__name__
    victim = dataclasses.replace(victim_from_module(model, normalisation, shape, device=first.device), arch=arch)
    clean = ImageSet(pixels, labels.long().cpu(), _class_names(given.class_names, victim.classes))
    classes = len(clean.class_names)
    if int(clean.labels.min()) < 0 or int(clean.labels.max()) >= classes:
        raise InputError(f"The labels must be 0 to {classes - 1}; they go from {clean.labels.min()} to {clean.labels.max()}.")
    check_for(clean, victim.classes, victim.input_shape)
    check_useful(victim, clean)
    return Case(victim, split(clean, run.seed))


def _class_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) > classes:
        raise InputError(f"There are {len(names)} class names, and the model has {classes} classes; give one for each.")
    return tuple(names)


def _labels(labels: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    try:
        return torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("The labels are no numbers; give the number of each image's class, as the network counts.") from error


def _pixels(images: Tensor | np.ndarray) -> Tensor:
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
