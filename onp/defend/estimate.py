"""How long a run will take on this machine, told before it starts, and what a quick one leaves out where it would be hours."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from onp.data.images import ImageSet, Splits
from onp.defend.expensive import expensive
from onp.defend.presets import Preset
from onp.detect.bank import BankConfig
from onp.detect.detectors import DRIFT_COPIES
from onp.detect.inversion import FitConfig
from onp.detect.pgd import STEPS
from onp.detect.trigger_families import FAMILIES
from onp.engine.differentiable import fitting_logits
from onp.engine.metrics import at_once
from onp.model.victim import Victim

WORTH_SAYING = 120.0  # seconds
BATCH = 16
FORWARD = 1 / 3  # of a pass forwards and back
REUSED = 0.5  # share of a mask's passes that prefixes and known masks leave
FEWEST_MASKS, FEWEST_STARTS = 50, 2


@dataclass(frozen=True)
class Estimate:
    """Seconds, as a rule right to a factor of two."""

    look: float  #: to look for a trigger
    repair: float  #: to repair what is found

    def __str__(self) -> str:
        if not self.look:
            return f"{_rounded(self.repair)} to repair it"
        return f"{_rounded(self.look)} to look for a trigger and, if there is one, {_rounded(self.repair)} more to repair it"


def estimate(victim: Victim, splits: Splits, preset: Preset, search_only: bool) -> Estimate:
    """From the time that a small batch of the images takes forwards and back, and the number of passes a run needs.

    search_only: the trigger is known, so that neither looking for one nor fitting others is needed.
    """
    bank, images = preset.bank, len(splits.build)
    fitted = 0 if search_only else 2 * len(FAMILIES) * bank.starts * bank.refine.steps * bank.refine.images
    scored = preset.search.agent.max_evaluations * 2 * len(splits.score) * FORWARD * REUSED
    looked = 0 if search_only else _looked(victim.classes, images, bank)
    each = _seconds(victim, splits.build)
    return Estimate(each * looked, each * (fitted + scored))


def affordable(victim: Victim, preset: Preset) -> Preset:
    """The preset, for an expensive network on a CPU with half the images a step, the masks and the changed copies."""
    if not expensive(victim):
        return preset
    search, bank = preset.search, preset.bank
    agent = replace(search.agent, max_evaluations=min(search.agent.max_evaluations, FEWEST_MASKS))
    search = replace(search, agent=agent, views=(search.views + 1) // 2, target_views=(search.target_views + 1) // 2)
    starts = min(bank.starts, FEWEST_STARTS)
    return Preset(replace(bank, scan=_halved(bank.scan), refine=_halved(bank.refine), starts=starts), search)


def _halved(config: FitConfig) -> FitConfig:
    return replace(config, images=(config.images + 1) // 2)


def _looked(classes: int, images: int, bank: BankConfig) -> float:
    fitted = len(FAMILIES) * bank.scan.steps + STEPS
    return classes * bank.scan.images * fitted + (DRIFT_COPIES + 2) * images * FORWARD


def _seconds(victim: Victim, images: ImageSet) -> float:
    """Of one image forwards and back, to its pixels."""
    logits = fitting_logits(victim)
    for count in (1, at_once(images.images, BATCH)):  # the first time warms up
        pixels = images.subset(range(min(count, len(images)))).pixels().to(victim.device).requires_grad_()
        start = time.monotonic()
        (gradient,) = torch.autograd.grad(logits(pixels).sum(), pixels)
        float(gradient.sum())  # waits for a GPU
        seconds = (time.monotonic() - start) / len(pixels)
    return seconds


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
