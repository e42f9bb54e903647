"""A case from values in memory: a live network, its images and labels, and a trigger where it is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onp.data.images import ImageSet, check_for, split
from onp.data.in_memory import is_source, labels_of, pairs_of, pixels_of
from onp.data.normalisation import Normalisation
from onp.defend.case import Case
from onp.defend.class_order import check_names, in_order
from onp.defend.evaluation import find_target
from onp.defend.run import Run
from onp.defend.sanity import Stated, check_useful
from onp.detect.known_trigger import KnownTrigger
from onp.errors import InputError, first_line
from onp.model.victim import victim_from_module

TOLERANCE = 1e-4  # by which triggered images may leave [0, 1]: rounding in interpolations


@dataclass(frozen=True, eq=False)
class Given:
    """What the caller gave, not checked."""

    model: nn.Module
    images: Any  #: uint8, or floats in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`; or a Dataset or DataLoader
    labels: Any = None  #: `[N]`; None for a Dataset or DataLoader, which gives them
    class_names: Sequence[str] | None = None  #: by label; None for those of the Dataset, or numbers
    class_order: Sequence[str] | None = None  #: the names as the network counts them, where the labels count otherwise
    trigger: Callable[[Tensor], Tensor] | None = None  #: from clean to triggered images, float32 `[N, C, H, W]` in [0, 1]


@dataclass(frozen=True, eq=False)
class CheckedTrigger:
    """A trigger of the caller's own; what it returns is checked."""

    function: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """That of the function."""
        return str(getattr(self.function, "name", getattr(self.function, "__name__", type(self.function).__name__)))

    @property
    def all_to_all(self) -> bool:
        """Whether every class is led to another one; False unless the trigger says so itself."""
        return bool(getattr(self.function, "all_to_all", False))

    def __call__(self, images: Tensor) -> Tensor:
        """Triggered images, float32 `[N, C, H, W]` in [0, 1]."""
        try:
            with torch.no_grad():
                found = self.function(images.clone())
        except InputError:
            raise
        except Exception as error:  # whatever the caller's code raises
            raise InputError(f"The trigger {self.name} fails on the images ({first_line(error)}).") from error
        if not isinstance(found, Tensor) or found.shape != images.shape or not found.is_floating_point():
            made = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"The trigger {self.name} makes {made} of float32 {list(images.shape)}; return images like those given."
            )
        low, high = (float(bound) for bound in found.aminmax())  # nan where any pixel is
        if not -TOLERANCE <= low <= high <= 1 + TOLERANCE:
            raise InputError(f"The trigger {self.name} makes pixels from {low:.2f} to {high:.2f}; keep them from 0 to 1.")
        return found.to(images).clamp(0, 1)


def case_from_memory(given: Given, run: Run) -> Case:
    """Check what was given, and split the images.

    Args:
        given: network, images and labels.
        run: seed and device, and the normalisation and the expected accuracy among the options.

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
    pixels, labels, names = _images(given)
    if labels.shape != (len(pixels),) or labels.is_floating_point():
        raise InputError(f"The labels are {labels.dtype} {list(labels.shape)}; one integer for each image is needed.")
    if next(model.parameters(), None) is None:
        raise InputError("The model has no parameters, so there is nothing to prune.")
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    normalisation, arch = Normalisation.parse(norm), type(model).__name__
    victim = dataclasses.replace(victim_from_module(model, normalisation, shape, device=run.device), arch=arch)
    clean = ImageSet(pixels, labels.long().cpu(), _class_names(names, victim.classes))
    classes = len(clean.class_names)
    if int(clean.labels.min()) < 0 or int(clean.labels.max()) >= classes:
        raise InputError(f"The labels must be 0 to {classes - 1}; they go from {clean.labels.min()} to {clean.labels.max()}.")
    if given.class_order is not None:
        check_names(given.class_order)
        clean = in_order(clean, given.class_order, victim.classes)
    check_for(clean, victim.classes, victim.input_shape)
    doubts = check_useful(victim, clean, Stated(given.class_order is not None, run.config.expect_acc))
    for doubt in doubts:
        run.monitor.note(f"Warning: {doubt}")
    parts, trigger = split(clean, run.seed), None
    if given.trigger is not None:
        known = CheckedTrigger(given.trigger)
        trigger = KnownTrigger(known, find_target(victim, parts.score.labels, known(parts.score.pixels())))
    return Case(victim, parts, trigger, doubts=doubts)


def _images(given: Given) -> tuple[Tensor, Tensor, Sequence[str] | None]:
    """Images uint8 `[N, C, H, W]`, labels and the names of the classes."""
    images, labels, names = given.images, given.labels, given.class_names
    if isinstance(images, (torch.utils.data.Dataset, torch.utils.data.DataLoader)) and labels is not None:
        raise InputError(f"The {type(images).__name__} gives the labels of its images; leave labels out.")
    if labels is not None:
        return pixels_of(images), labels_of(labels), names
    if not is_source(images):
        raise InputError("There are no labels; give one for each image, or a Dataset or DataLoader of (image, label).")
    pixels, labels, known = pairs_of(images)
    return pixels, labels, known if names is None else names


def _class_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) > classes:
        raise InputError(f"There are {len(names)} class names, and the model has {classes} classes; give one for each.")
    return tuple(names)
