"""ACC, ASR, RA and DER, exact intervals for shares, and the one way to measure them with unmodified network code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.engine.scoring import Batch, TriggeredBatch
from onp.threads import run_all

VALUES_AT_ONCE = 2**22  # of a batch: 27 images of 3x224x224, whose activations take some 3 GB in a ResNet-50 with gradients


LEAST_A_THREAD = 16  # images at once
MOST_COPIED = 2**26  # parameters of all copies of a network that is measured in threads, 256 MiB


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
        low = betaincinv(self.hits, self.n - self.hits + 1, 0.025) if self.hits else 0.0
        high = betaincinv(self.hits + 1, self.n - self.hits, 0.975) if self.hits < self.n else 1.0
        return float(low), float(high)


def lower_bound(hits: int, n: int, confidence: float) -> float:
    """One-sided lower bound of a share of `hits` in `n` (Clopper-Pearson 1934); 0 where there are none."""
    return float(betaincinv(hits, n - hits + 1, 1 - confidence)) if hits else 0.0


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


Advance = Callable[[int], None]
"""Called with the number of images that are done."""


def _nothing(images: int) -> None:
    pass


@torch.no_grad()
def predictions(model: nn.Module, inputs: Tensor, advance: Advance = _nothing) -> Tensor:
    """Classes int64 `[N]` of normalised images `[N, C, H, W]`, by the network's own code, on the device of the images."""
    if not len(inputs):
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([logits.argmax(1) for logits in _logits(_copies(model, inputs), inputs, advance)])


@dataclass(frozen=True, eq=False)
class Measured:
    """What one network does with clean and triggered images."""

    acc: Share
    asr: Share | None  #: None without triggered images
    ra: Share | None  #: of the same images
    asr_clean: Share | None  #: share of clean images of other classes that are given the target class; None without goals
    probabilities: Tensor  #: float32 `[N, classes]` of the clean images, on the CPU


def batches_of(images: ImageSet, normalisation: Normalisation, device: torch.device) -> Iterator[Batch]:
    """Clean images in normalised batches that fit the memory together with their activations."""
    size = at_once(images.images, 250)
    for start in range(0, len(images), size):
        part = images.subset(range(start, min(start + size, len(images))))
        yield Batch(normalisation(part.pixels().to(device)), part.labels)


@torch.no_grad()
def measure(
    model: nn.Module,
    clean: Iterable[Batch],
    goals: Tensor | int | None = None,
    triggered: Iterable[TriggeredBatch] = (),
    advance: Advance = _nothing,
) -> Measured:
    """Measure a network by its own code.

    Args:
        model: in eval mode, float32; the images lie on its device.
        clean: images of the ACC, in any number of batches.
        goals: the class that the trigger would lead clean images to, one for all or int64 `[N]`; None leaves `asr_clean` out.
        triggered: images of the ASR and RA; those whose label is the target class do not count, and do not run.
        advance: progress callback; it counts the images that do not run, too.
    """
    labels, logits, copies = list[Tensor](), list[Tensor](), list[nn.Module]()
    for batch in clean:
        labels.append(batch.labels.cpu())
        copies = copies or _copies(model, batch.images)
        logits.extend(part.cpu() for part in _logits(copies, batch.images, advance))
    own, all_logits = torch.cat(labels), torch.cat(logits)
    predicted = all_logits.argmax(1)
    asr, ra = measure_attack(model, triggered, advance)
    asr_clean = None
    if goals is not None:
        asr_clean = attack_success(own, predicted, goals.cpu() if isinstance(goals, Tensor) else goals)
    return Measured(accuracy(own, predicted), asr, ra, asr_clean, all_logits.softmax(1))


@torch.no_grad()
def measure_attack(
    model: nn.Module, triggered: Iterable[TriggeredBatch], advance: Advance = _nothing
) -> tuple[Share | None, Share | None]:
    """ASR and RA of a network on triggered images, as in `measure`; None without any batch."""
    labels, targets, predicted = [], [], []
    for batch in triggered:
        others = batch.labels != batch.target
        predicted.append(predictions(model, batch.images[others.to(batch.images.device)], advance).cpu())
        labels.append(batch.labels[others].cpu())
        targets.append(batch.target[others].cpu())
        advance(int((~others).sum()))
    if not labels:
        return None, None
    own, goals, given = torch.cat(labels), torch.cat(targets), torch.cat(predicted)
    return attack_success(own, given, goals), robust_accuracy(own, given, goals)


def _copies(model: nn.Module, inputs: Tensor) -> list[nn.Module]:
    """The network once for each thread of a CPU, since it may keep values in itself, channels last; else as it is."""
    size = sum(value.numel() for value in model.parameters())
    # Large images keep all threads busy by themselves, and large networks would take the memory of each copy.
    workers = min(torch.get_num_threads(), _together(inputs) // LEAST_A_THREAD, MOST_COPIED // max(1, size))
    if inputs.device.type != "cpu" or workers < 1:
        return [model]
    return [copy.deepcopy(model).to(memory_format=torch.channels_last) for _ in range(workers)]  # type: ignore[call-overload]


def _logits(models: list[nn.Module], inputs: Tensor, advance: Advance) -> Iterator[Tensor]:
    """Logits of the images, a few at once on each of some copies of a network."""
    parts = inputs.split(max(1, -(-_together(inputs) // len(models))))

    def run(place: int) -> Tensor:
        logits: Tensor = models[place % len(models)](parts[place])
        return logits

    for first in range(0, len(parts), len(models)):
        places = range(first, min(first + len(models), len(parts)))
        for logits in run_all(run, places, len(places)):
            yield logits
            advance(len(logits))


def _together(inputs: Tensor) -> int:
    return min(at_once(inputs, 250), len(inputs))
