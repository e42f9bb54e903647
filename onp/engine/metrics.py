"""The field's figures: ACC, ASR, RA, DER, and exact intervals for shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

VALUES_AT_ONCE = 2**22  # of a batch: 27 images of 3x224x224, whose activations take some 3 GB in a ResNet-50 with gradients


@dataclass(frozen=True)
class Share:
    """`hits` of `n` images, with the exact (Clopper-Pearson 1934) 95 % interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """hits / n; nan without images."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper 95 % bound of the share; (0, 1) without images."""
        if not self.n:
            return 0.0, 1.0
        bounds = binomtest(self.hits, self.n).proportion_ci(0.95, "exact")
        return float(bounds.low), float(bounds.high)


def accuracy(labels: Tensor, predicted: Tensor) -> Share:
    """ACC: share of clean images `[N]` whose predicted class is their label."""
    return Share(int((labels == predicted).sum()), len(labels))


def attack_success(labels: Tensor, predicted: Tensor, target: int | Tensor) -> Share:
    """ASR: share of triggered images `[N]` of other classes that are given the target class.

    `target` is one class, or int64 `[N]` with the class that each image is led to (`Trigger.goals`).
    """
    others = labels != target
    return Share(int((others & (predicted == target)).sum()), int(others.sum()))


def robust_accuracy(labels: Tensor, predicted: Tensor, target: int | Tensor) -> Share:
    """RA: share of triggered images `[N]` of other classes that are given their own class; `target` as for the ASR."""
    others = labels != target
    return Share(int((predicted[others] == labels[others]).sum()), int(others.sum()))


def defence_effectiveness(acc_before: float, acc_after: float, asr_before: float, asr_after: float) -> float:
    """DER = (max(0, dASR) - max(0, dACC) + 1) / 2 in [0, 1] (Zhu et al. 2023, https://arxiv.org/abs/2304.11823)."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def at_once(images: Tensor, most: int, values: int = VALUES_AT_ONCE) -> int:
    """How many images `[..., C, H, W]` to run together: `most`, or as few large ones as keep the activations in memory.

    Args:
        images: of which only the shape counts.
        most: how many small ones.
        values: most pixel values in a batch.
    """
    return max(1, min(most, values // images.shape[-3:].numel()))


@torch.no_grad()
def predictions(model: torch.nn.Module, inputs: Tensor, advance: Callable[[int], None] = lambda _: None) -> Tensor:
    """Classes int64 `[N]` of normalised images `[N, C, H, W]`, by the network's own code; `advance` counts images."""
    if not len(inputs):
        return torch.empty(0, dtype=torch.int64)
    found = []
    for part in inputs.split(at_once(inputs, 250)):
        found.append(model(part).argmax(1))
        advance(len(part))
    return torch.cat(found)
