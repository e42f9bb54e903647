"""How much memory a run takes, and settings that keep it within --memory.

Three things grow with the network and the images: the values that gradients need while triggers are inverted, the activation
cache of the search, and the features and values that healing learns from. The settings of these change memory and speed only,
but for one: with few features healing has fewer augmented copies of the images.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import torch

from onp.defend.case import Case
from onp.defend.presets import Preset
from onp.defend.run import Run
from onp.defend.verdict import is_to_repair
from onp.detect.classes_to_invert import most_inverted
from onp.detect.trigger_families import FAMILIES
from onp.engine.metrics import at_once
from onp.engine.plan import plan_of
from onp.errors import InputError
from onp.model.victim import Victim

GIB = 2**30
VALUE = 4  # bytes
WITH_GRADIENTS = 1.5  # times the values of a forward pass: what an image takes forwards and back, 1.2 in a ResNet-50
JOINED = 2  # times the features that healing keeps: they are joined from parts


@dataclass(frozen=True)
class Memory:
    """What a run on a CPU takes, in bytes; right to a third as a rule."""

    resident: int  #: before its first stage: Python, torch, the network, the images
    inversion: int  #: the images that triggers are inverted on together
    search: int  #: the activation cache, at most
    healing: int  #: the features that are learned from, and one step

    @property
    def most(self) -> int:
        """At any time; one stage follows the other."""
        return self.resident + max(self.inversion, self.search, self.healing)

    def __str__(self) -> str:
        return f"{self.most / GIB:.1f} GiB of memory"


def memory_of(case: Case, preset: Preset, repairing: bool = True) -> Memory:
    """What a run takes with these settings; to be asked before its first stage.

    Args:
        case: what it works on.
        preset: its settings.
        repairing: whether a backdoor is to be repaired, and not only looked for.
    """
    victim, images, detect, heal = case.victim, case.searched, preset.detect, preset.heal
    each, threads = _bytes_an_image(victim), min(torch.get_num_threads(), len(FAMILIES))
    triggers = ((detect.scan.images, most_inverted(victim.classes)), (detect.refine.images, detect.starts))
    together = max(
        max(of_each, at_once(images.images, of_each * count, preset.values_at_once // threads)) for of_each, count in triggers
    )
    learned = 0
    if heal is not None and repairing:
        kept = min(heal.values, 2 * heal.copies * len(images) * plan_of(victim).widest_bytes(1))
        learned = JOINED * VALUE * kept + min(heal.at_once, 2 * heal.batch) * each
    return Memory(_resident(), threads * together * each, repairing * preset.search.cache_bytes, learned)


def within_memory(run: Run, case: Case) -> Run:
    """The run, with settings that keep it within `config.memory`.

    Args:
        run: any run.
        case: what it works on.

    Raises:
        InputError: that is too little or no number, or the run is not on a CPU.
    """
    if run.config.memory is None:
        return run
    if not math.isfinite(run.config.memory):
        raise InputError(f"--memory {run.config.memory} is no number of GiB; give one above 0, or leave it out.")
    if run.device.type != "cpu":
        raise InputError("--memory is of runs on a CPU; leave it out, or give --device cpu.")
    limit, preset, each = int(run.config.memory * GIB), run.preset, _bytes_an_image(case.victim)
    left = max(1, limit - _resident())
    heal = preset.heal
    if heal is not None:
        values, step = left // (2 * JOINED * VALUE), max(1, left // (2 * each))
        heal = replace(heal, values=min(heal.values, values), at_once=min(heal.at_once, step))
    preset = replace(
        preset,
        values_at_once=min(preset.values_at_once, max(1, left // each) * math.prod(case.victim.input_shape)),
        search=replace(preset.search, cache_bytes=min(preset.search.cache_bytes, left)),
        heal=heal,
    )
    least = memory_of(case, preset, is_to_repair(case, run.config))
    if least.most > limit:
        raise InputError(
            f"--memory {run.config.memory:g} is too little: this network takes at least {least} here; give as much, or let it "
            "compute with fewer threads (OMP_NUM_THREADS=1)."
        )
    return replace(run, preset=preset)


def _bytes_an_image(victim: Victim) -> int:
    """Of all values of the network that an image takes forwards and back."""
    shapes = plan_of(victim).shapes.values()
    return max(1, int(WITH_GRADIENTS * VALUE * sum(math.prod(shape or ()) for shape in shapes)))


def _resident() -> int:
    """Bytes of memory that this process has had at most so far; half a GiB where the system does not say."""
    try:
        import resource  # not on every system
    except ImportError:
        return GIB // 2
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
