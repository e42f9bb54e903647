"""The calls for a notebook: a live network, images and labels in; detection scores or a repair out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.defend import Outcome, run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.from_memory import Given, case_from_memory
from onp.defend.presets import Preset
from onp.defend.run import Run
from onp.detect.bn_statistics import bn_statistics
from onp.detect.targets import detect_targets
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import pruned_rows
from onp.model.victim import victim_from_module
from onp.numerics import strict_float32

Images = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Evidence:
    """The answer of `detect`; only clean images decide."""

    backdoored: bool  #: whether the score of a class reaches the threshold
    predicted_target: int  #: the class with the highest score
    score: tuple[float, ...]  #: per class: the clipped anomaly indices of all detectors, summed
    anomaly_index: dict[str, tuple[float, ...]]  #: detector -> per class, in robust standard deviations
    threshold: float  #: of the score


@strict_float32()
def detect(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    preset: str | Preset = "default",
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Evidence:
    """Tell whether a live network is backdoored, and towards which class.

    Args:
        model: as for `mitigate`, like all that follow.
        images: a few hundred clean ones.
        labels: of the images.
        norm: the normalisation of the model's training.
        preset: how much to try.
        class_names: names by class; the answer does not depend on them.
        seed: same seed, same machine: same scores.
        quiet: no progress.

    Raises:
        InputError: something given cannot be used.
    """
    run = _run(DefendConfig(norm=norm, seed=seed, quiet=quiet), preset)
    case = case_from_memory(Given(model, images, labels, class_names), run)
    bn = bn_statistics(case.victim, case.searched)
    detection = detect_targets(case.victim, case.clean, bn, run.detecting(), run.stage)
    scores, threshold = detection.scores, detection.config.threshold
    return Evidence(detection.backdoored, scores.predicted_target, scores.score, scores.anomaly_index, threshold)


def mitigate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    preset: str | Preset = "default",
    max_acc_drop: float = 0.01,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Outcome:
    """Detect a backdoor in a live network and repair a copy of it; `model` itself is not changed.

    Args:
        model: a classifier of normalised images `[N, C, H, W]` that returns logits `[N, classes]`; computed with in float32
            on the device it is on.
        images: a few hundred clean ones, not normalised: uint8, or floats in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` or
            `[N, H, W]`, tensor or array.
        labels: `[N]` integers, the classes as the network counts them.
        norm: the normalisation of the model's training: a preset such as "cifar10" or "imagenet", or "MEAN/STD".
        preset: "fast", "default", "thorough" or "paper", or settings of your own.
        max_acc_drop: accuracy that the repair may cost, as a share of the images.
        class_names: names by class, for the report.
        seed: same seed, same machine: same mask.
        quiet: no progress.

    Returns:
        An `Outcome`: `report`, `mask`, `network` (the repaired copy), and `html()` for the page, which a notebook shows.

    Raises:
        InputError: something given cannot be used.
    """
    run = _run(DefendConfig(norm=norm, max_acc_drop=max_acc_drop, seed=seed, quiet=quiet), preset)
    return run_pipeline(case_from_memory(Given(model, images, labels, class_names), run), run)


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


def _run(config: DefendConfig, preset: str | Preset) -> Run:
    if isinstance(preset, Preset):
        return Run.of(config, preset)
    return Run.of(replace(config, preset=preset))
