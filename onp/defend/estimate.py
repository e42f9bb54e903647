"""How long a run will take on this machine, and smaller settings for networks of which one pass is expensive on a CPU."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from onp.data.images import ImageSet
from onp.defend.case import Case
from onp.defend.memory import memory_of
from onp.defend.presets import Preset
from onp.defend.run import Run
from onp.defend.verdict import is_to_repair
from onp.detect import pgd
from onp.detect.bank import inversion_steps
from onp.detect.changes import changed_images
from onp.detect.classes_to_invert import most_inverted
from onp.detect.config import DetectConfig, InversionConfig
from onp.detect.detectors import AUGMENTATIONS
from onp.detect.scan import inverting_steps
from onp.engine.differentiable import fitting_logits
from onp.engine.metrics import at_once
from onp.engine.plan import plan_of
from onp.model.heal import heal_images
from onp.model.victim import Victim

# FLOPs of an image's forward pass: a PreActResNet-18 at 32x32 takes 1.2e9, a ResNet-18 at 224x224 4e9. A ResNet-50 at 224x224
# takes one core 0.2 s an image forwards and back, and a fast run on ten classes makes 11,000 such passes.
EXPENSIVE = 2e9
LONG = 120.0  # seconds from which the estimate is shown
BATCH = 16  # images that are timed together
BATCHES = 5  # of which the median counts: other work on the machine comes and goes
FORWARD = 1 / 3  # of the time of a pass forwards and back
HEALING = 1 / 3  # of the time of a pass forwards and back that an image takes in healing, half of the network as a rule
HEALED = 2  # times, with another teacher each, three at most
NOT_REUSED = 0.5  # share of a mask's passes that the activation cache and the table of masks leave to be computed
FEWEST_MASKS, FEWEST_STARTS = 50, 2


@dataclass(frozen=True)
class Estimate:
    """Seconds, right to a factor of two as a rule."""

    detection: float  #: 0 where the trigger is known
    repair: float  #: where a backdoor is detected: to repair it, or only to measure its triggers
    repairing: bool = True

    @property
    def total(self) -> float:
        """Of both."""
        return self.detection + self.repair

    def __str__(self) -> str:
        purpose = "repair it" if self.repairing else "invert its triggers again"
        if not self.detection:
            return f"{_rounded(self.repair)} to {purpose}"
        return (
            f"{_rounded(self.detection)} to look for a backdoor and, if there is one, {_rounded(self.repair)} more to {purpose}"
        )


def scaled_down(run: Run, victim: Victim, expensive: float = EXPENSIVE) -> Run:
    """The run, with `affordable` settings where it is a fast one.

    Args:
        run: any run.
        victim: its network.
        expensive: FLOPs of a forward pass of one image.
    """
    return replace(run, preset=affordable(victim, run.preset, expensive)) if run.config.preset == "fast" else run


def affordable(victim: Victim, preset: Preset, expensive: float = EXPENSIVE) -> Preset:
    """The settings; for an expensive network on a CPU with half the images a step, the masks and the augmented images.

    The number of operations decides and not the time, so that a run goes the same way on every CPU.

    Args:
        victim: the network.
        preset: the settings.
        expensive: FLOPs of a forward pass of one image.
    """
    if victim.device.type != "cpu" or sum(plan_of(victim).cost) < expensive:
        return preset
    search, detect = preset.search, preset.detect
    search = replace(
        search,
        method=replace(search.method, max_evaluations=min(search.method.max_evaluations, FEWEST_MASKS)),
        target_augmentations=_half(search.target_augmentations),
    )
    starts = min(detect.starts, FEWEST_STARTS)
    detect = replace(
        detect,
        scan=_halved(detect.scan),
        refine=_halved(detect.refine),
        starts=starts,
        change_images=_half(_half(detect.change_images)),
    )
    heal = None if preset.heal is None else replace(preset.heal, copies=1, batch=_half(_half(preset.heal.batch)))
    return replace(preset, detect=detect, search=search, heal=heal)


def announce(case: Case, run: Run, seconds: float | None = None) -> Estimate:
    """Say how long the run will take, where that is long.

    Args:
        case: what it works on.
        run: its settings.
        seconds: that one image takes forwards and back; measured where it is None.

    Returns:
        The estimate, for `announce_repair`.
    """
    each = seconds_an_image(case.victim, case.clean.build) if seconds is None else seconds
    repairing = is_to_repair(case, run.config)
    ahead = estimate(case, run.preset, each, repairing)
    if ahead.total >= LONG:
        quicker = "a GPU is" if run.config.preset == "fast" else "--preset fast or a GPU are"
        taken = f" and {memory_of(case, run.preset, repairing)} at most" if case.victim.device.type == "cpu" else ""
        run.monitor.note(f"About {ahead}, on {case.victim.device}{taken}; {quicker} quicker.")
    return ahead


def announce_repair(ahead: Estimate, took: float, run: Run) -> None:
    """Say how long the rest of the run will take, where that is long, at the pace that detection had.

    Args:
        ahead: what was foretold.
        took: seconds of detection; 0 where a resumed run read what an earlier one had found.
        run: of which detection has ended.
    """
    left = ahead.repair * took / ahead.detection if ahead.detection else 0.0
    if left >= LONG:
        run.monitor.note(f"About {_rounded(left)} more, as fast as it went so far.")


def estimate(case: Case, preset: Preset, seconds: float, repairing: bool = True) -> Estimate:
    """From the number of passes that a run makes.

    Args:
        case: what it works on.
        preset: its settings.
        seconds: that one image takes forwards and back.
        repairing: whether a backdoor is to be repaired, and not only measured.
    """
    detect, known = preset.detect, case.known_trigger is not None
    inverted = 0 if known else (1 + repairing) * inversion_steps(detect) * detect.starts * detect.refine.images
    healed = 0.0
    if repairing and preset.heal is not None:
        healed = HEALED * HEALING * heal_images(len(case.searched), preset.heal)
    scored = repairing * preset.search.method.max_evaluations * 2 * len(case.clean.score) * FORWARD * NOT_REUSED
    detected = 0 if known else _detection_passes(case.victim.classes, len(case.clean.build), detect)
    return Estimate(seconds * detected, seconds * (inverted + scored + healed), repairing)


def seconds_an_image(victim: Victim, images: ImageSet) -> float:
    """Time one image forwards and back, to its pixels, in small batches."""
    logits, size = fitting_logits(victim), at_once(images.images, BATCH)

    def timed(count: int) -> float:
        pixels = images.subset(range(min(count, len(images)))).pixels().to(victim.device).requires_grad_()
        start = time.monotonic()
        (gradient,) = torch.autograd.grad(logits(pixels).sum(), pixels)
        float(gradient.sum())  # waits for a GPU
        return (time.monotonic() - start) / len(pixels)

    timed(1)  # the first time warms up
    first = timed(size)
    return statistics.median([first, *(timed(size) for _ in range(BATCHES - 1))]) if first * size < 1 else first


def _detection_passes(classes: int, images: int, config: DetectConfig) -> float:
    inverted = most_inverted(classes) * (config.scan.images * inverting_steps(config) + pgd.IMAGES * pgd.STEPS)
    return inverted + ((AUGMENTATIONS + 2) * images + changed_images(images, config)) * FORWARD


def _halved(config: InversionConfig) -> InversionConfig:
    return replace(config, images=_half(config.images))


def _half(count: int) -> int:
    return (count + 1) // 2


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
