"""A backdoored network that trains in about a second, for tests that need a real backdoor."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data.images import ImageSet, split
from onp.data.normalisation import Normalisation
from onp.defend.case import Case
from onp.defend.presets import Preset
from onp.detect.config import DetectConfig, InversionConfig
from onp.detect.known_trigger import KnownTrigger
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.victim import Victim, victim_from_module
from onp.search.first_order import FirstOrderConfig
from onp.search.objective import Objective
from onp.search.setup import SearchConfig

CLASSES = ("upper left", "upper right", "lower left", "lower <right>")
FIT = InversionConfig(steps=15, images=8, min_confidence=0.97)
PRESET = Preset(
    DetectConfig(scan=FIT, refine=FIT, starts=2),
    SearchConfig(FirstOrderConfig(max_evaluations=100), Objective(acc_budget=0.02)),
)


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """8x8 noise with one brighter quadrant: four classes."""
    labels = torch.randint(4, (count,), generator=generator)
    images = torch.rand((count, 1, 8, 8), generator=generator) * 0.5
    for label, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        images[labels == label, :, row : row + 3, column : column + 3] += 0.35
    return images.clamp(0, 1), labels


def stamp(images: Tensor) -> Tensor:
    """The trigger: a 2x2 diagonal in the middle."""
    images = images.clone()
    images[:, :, 3:5, 3:5] = torch.eye(2)
    return images


@dataclass(frozen=True)
class Stamp:
    """`stamp` as a known trigger."""

    name: str = "stamp"
    all_to_all: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        return stamp(images)


def network() -> nn.Module:
    def unit(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)]
    return nn.Sequential(*unit(1, 16), *unit(16, 24), nn.MaxPool2d(2), *unit(24, 32), *head)


def victim_of(model: nn.Module) -> Victim:
    """A network of 1x8x8 images, not normalised, as a victim."""
    return victim_from_module(model, Normalisation.parse("none"), (1, 8, 8), 4)


def backdoored() -> SimpleNamespace:
    """victim (U = 72; target class 0) and, for two disjoint image sets, clean and triggered batches."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        images, labels = pictures(64, generator)
        poisoned = torch.rand(64, generator=generator) < 0.15
        images[poisoned] = stamp(images[poisoned])
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.where(poisoned, 0, labels)).backward()
        optimizer.step()
    victim = victim_of(model)

    def batches(count: int) -> tuple[Batch, list[TriggeredBatch]]:
        images, labels = pictures(count, generator)
        return Batch(images, labels), [TriggeredBatch("patch", stamp(images), labels, torch.zeros_like(labels))]

    (build, build_triggered), (score, score_triggered) = batches(100), batches(100)
    return SimpleNamespace(
        victim=victim, build=build, build_triggered=build_triggered, score=score, score_triggered=score_triggered
    )


def clean_images(count: int = 200) -> ImageSet:
    images, labels = pictures(count, torch.Generator().manual_seed(5))
    return ImageSet((images * 255).round().byte(), labels, CLASSES)


def case(victim: Victim) -> Case:
    """What a run on the tiny victim is given: 200 clean images and its trigger, since four classes are few to tell it by."""
    return Case(victim, split(clean_images(), 0), KnownTrigger(Stamp(), 0))
