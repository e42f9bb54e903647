"""The calls for a notebook: a live network, images and labels in; the probability of a backdoor or a repair out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.defend import Outcome, run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.evidence import Evidence
from onp.defend.from_memory import Given, case_from_memory
from onp.defend.monitor import Monitor
from onp.defend.presets import Preset
from onp.defend.run import Run
from onp.detect.bn_statistics import bn_statistics
from onp.detect.targets import detect_targets
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import pruned_rows
from onp.model.victim import victim_from_module
from onp.numerics import resolve_device, strict_float32
from onp.progress import Listener, Pace

Images = Any
"""A tensor or array, or a `torch.utils.data.Dataset` or `DataLoader` of (image, label)."""
Labels = Tensor | np.ndarray | Sequence[int] | None


@strict_float32()
def detect(
    model: nn.Module,
    images: Images,
    labels: Labels = None,
    *,
    norm: str,
    preset: str | Preset = "default",
    class_names: Sequence[str] | None = None,
    class_order: Sequence[str] | None = None,
    expect_acc: float | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    quiet: bool = False,
    progress: Listener | None = None,
) -> Evidence:
    """Tell whether a live network is backdoored, and towards which class.

    Args:
        model: as for `mitigate`, like all that follow.
        images: a few hundred clean ones.
        labels: of the images.
        norm: the normalisation of the model's training.
        preset: how much to try.
        class_names: names by label; the answer does not depend on them.
        class_order: the names as the network counts the classes.
        expect_acc: accuracy that the network should reach.
        device: where to compute.
        seed: same seed, same machine: same probabilities.
        quiet: no progress.
        progress: called with each step.

    Raises:
        InputError: something given cannot be used.
    """
    run = _run(DefendConfig(norm=norm, expect_acc=expect_acc, seed=seed, quiet=quiet), preset, progress, _device(device, model))
    case = case_from_memory(Given(model, images, labels, class_names, class_order), run)
    bn = bn_statistics(case.victim, case.searched)
    return Evidence.of(detect_targets(case.victim, case.clean, bn, run.detecting(), run.stage), case)


def mitigate(
    model: nn.Module,
    images: Images,
    labels: Labels = None,
    *,
    norm: str,
    preset: str | Preset = "default",
    max_acc_drop: float = 0.01,
    class_names: Sequence[str] | None = None,
    class_order: Sequence[str] | None = None,
    expect_acc: float | None = None,
    trigger: Callable[[Tensor], Tensor] | None = None,
    heal: bool = True,
    device: str | torch.device | None = None,
    seed: int = 0,
    quiet: bool = False,
    progress: Listener | None = None,
) -> Outcome:
    """Detect a backdoor in a live network and repair a copy of it; `model` itself is not changed.

    Args:
        model: a classifier of normalised images `[N, C, H, W]` that returns logits `[N, classes]`, alone, as `logits` of a dict
            or ModelOutput, or first in a tuple; computed with in float32.
        images: a few hundred clean ones, not normalised: uint8, or floats in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` or
            `[N, H, W]`, tensor or array; or a Dataset or DataLoader of such (image, label), PIL images included.
        labels: `[N]` integers, the classes as the network counts them; None for a Dataset or DataLoader.
        norm: the normalisation of the model's training: a preset such as "cifar10" or "imagenet", or "MEAN/STD".
        preset: "fast", "default", "thorough" or "paper", or settings of your own.
        max_acc_drop: accuracy that the repair may cost, as a share of the images.
        class_names: names by label, for the report; those of the Dataset where it has `classes`.
        class_order: the names in the order in which the network counts its classes, where that is not the order of
            `class_names`.
        expect_acc: accuracy that the network should reach on the images, a share; below it nothing is done.
        trigger: the trigger, where it is known, in place of detection and inversion: one of `onp.attack`, or a function from
            clean to triggered images, both float32 `[N, C, H, W]` in [0, 1].
        heal: train the later half of the pruned network to ignore the triggers; False: prune only.
        device: "cpu", "cuda", "cuda:1" or "auto"; that of the model where it is None.
        seed: same seed, same machine: same mask.
        quiet: no progress on stderr.
        progress: called with the name of a stage, the steps done and all of its steps; what it raises ends the run.

    Returns:
        An `Outcome`: `report`, `mask`, `network` (the repaired copy), `save(folder)`, and `html()` for the page, which a
        notebook shows.

    Raises:
        InputError: something given cannot be used.

    Example:
        >>> outcome = onp.mitigate(model, DataLoader(test_set, 100), norm="cifar10")  # doctest: +SKIP
        >>> outcome.save("repaired")  # doctest: +SKIP
    """
    config = DefendConfig(norm=norm, max_acc_drop=max_acc_drop, expect_acc=expect_acc, heal=heal, seed=seed, quiet=quiet)
    run = _run(config, preset, progress, _device(device, model))
    if trigger is not None:
        run = replace(run, preset=run.preset.with_known_trigger())
    return run_pipeline(case_from_memory(Given(model, images, labels, class_names, class_order, trigger), run), run)


@dataclass(frozen=True, eq=False)
class Applied:
    """What `apply` replaced: (parameter, rows bool `[K]`, the values that were there)."""

    replaced: tuple[tuple[Tensor, Tensor, Tensor], ...]

    def __repr__(self) -> str:
        values = sum(values.numel() for _, _, values in self.replaced)
        return f"Applied({values} values of {len(self.replaced)} tensors are zero; onp.undo puts them back)"


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


def _run(config: DefendConfig, preset: str | Preset, listener: Listener | None, device: torch.device) -> Run:
    run = Run.of(config, preset) if isinstance(preset, Preset) else Run.of(replace(config, preset=preset))
    return replace(run, monitor=Monitor(config.quiet, pace=Pace(listener=listener)), device=device)


def _device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """The device that is asked for, or that of the model."""
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        return torch.device("cpu") if first is None else first.device
    if device in ("auto", "cpu", "cuda"):
        return resolve_device(str(device))
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"The device {device} cannot be used here; give 'cpu', 'cuda', 'cuda:1' or 'auto'.") from error
    return found
