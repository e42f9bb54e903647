"""One cell of a table: one defence, with one seed, on one victim."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from onp.attack.triggers import load_trigger
from onp.compare.defences import DefenceConfig, defence
from onp.compare.defences.pruning import Pruning
from onp.compare.measure import Truth, truth_of
from onp.compare.victims import VictimFiles
from onp.data.images import ImageSet, Normalisation, load_images
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.report.environment import hardware, versions
from onp.engine.metrics import defence_effectiveness
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.tuning import tune_pruned
from onp.model.tuning.ft import fine_tuned
from onp.model.victim import Victim, load_victim
from onp.numerics import repeatable, strict_float32

REACTIVATION_EPOCHS = 5


@dataclass(frozen=True)
class Cell:
    """What to run; all that the result depends on but the machine."""

    victim: VictimFiles
    defence: str
    seed: int
    preset: str
    max_acc_drop: float
    passes: int
    threads: int  #: 0: as many as torch takes

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.victim.name}.{self.defence}.{self.seed}"


@dataclass(frozen=True, eq=False)
class Treated:
    """What a defence made of the victim."""

    victim: Victim
    decision: str  #: repaired, or why nothing was changed
    evaluations: int = 0
    mask: Mask | None = None  #: None for a defence that prunes nothing
    pruning: Pruning | None = None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Defend and measure; the figures are shares of the evaluation images. Raises whatever the defence raises."""
    before_threads = torch.get_num_threads()
    torch.set_num_threads(cell.threads or before_threads)
    try:
        return _run(cell)
    finally:
        torch.set_num_threads(before_threads)


@strict_float32()
def _run(cell: Cell) -> dict[str, Any]:
    files = cell.victim
    clean, evaluation = load_images(files.clean), load_images(files.evaluation)
    evaluation = evaluation.relabelled(clean.class_names)
    shape = (clean.images.shape[1], clean.images.shape[2], clean.images.shape[3])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    victim = load_victim(files.model, files.arch, Normalisation.parse(files.norm), shape, device)
    start = time.monotonic()
    treated = treat(cell, victim, clean)
    seconds = time.monotonic() - start

    truth = truth_of(victim, evaluation, load_trigger(files.trigger) if files.trigger else None, files.target)
    before, after = truth.measure(victim.model), truth.measure(treated.victim.model)
    row: dict[str, Any] = {f"{name}_before": value for name, value in before.items()} | after
    if "asr" in after:
        row["der"] = defence_effectiveness(before["acc"], after["acc"], before["asr"], after["asr"])
    again = fine_tuned(treated.victim, clean, DefenceConfig(seed=cell.seed), REACTIVATION_EPOCHS, "re-activation").eval()
    row |= {f"{name}_reactivated": value for name, value in truth.measure(again).items() if name in ("acc", "asr")}
    row |= {"decision": treated.decision, "seconds": seconds, "evaluations": treated.evaluations, "units": victim.units}
    row["where"] = ", ".join(f"{name} {value}" for name, value in (hardware() | versions()).items())
    if treated.mask is not None:
        row["pruned"] = int((~treated.mask.keep).sum())
    if treated.pruning is not None and treated.pruning.curve is not None:
        row |= peek(victim, truth, treated.pruning, before, cell.max_acc_drop)
    return row


@repeatable()
def treat(cell: Cell, victim: Victim, clean: ImageSet) -> Treated:
    """Run the defence; it sees the victim and the clean images. On a GPU the peers train in TF32, as their own code does."""
    name, _, tuning = cell.defence.partition("+")
    config = DefenceConfig(seed=cell.seed, passes=cell.passes, max_acc_drop=cell.max_acc_drop, preset=cell.preset)
    if name == "onp":
        treated = _onp(cell)
    else:
        pruning = defence(name)(victim, clean, config)
        if isinstance(pruning, Victim):
            if tuning:
                raise InputError(f"The defence '{name}' trains already, so it takes no +{tuning}.")
            return Treated(pruning, "tuned")
        decision = "repaired" if not bool(pruning.mask.keep.all()) else "nothing pruned"
        treated = Treated(repair(victim, pruning.mask), decision, pruning.evaluations, pruning.mask, pruning)
    # A defence that saw no backdoor has nothing to tune away.
    if tuning and treated.mask is not None and treated.decision == "repaired":
        tuned = tune_pruned(treated.victim, treated.mask, tuning, clean, config)
        return Treated(tuned, treated.decision, treated.evaluations, treated.mask)
    return treated


def _onp(cell: Cell) -> Treated:
    files = cell.victim
    outcome = defend(
        DefendConfig(
            model=files.model,
            arch=files.arch,
            norm=files.norm,
            data=files.clean,
            preset=cell.preset,
            max_acc_drop=cell.max_acc_drop,
            seed=cell.seed,
            quiet=True,
        )
    )
    report = outcome.report
    return Treated(outcome.victim, report.decision, report.budget.evaluations, outcome.mask)


def peek(victim: Victim, truth: Truth, pruning: Pruning, untouched: dict[str, float], max_acc_drop: float) -> dict[str, Any]:
    """The curve on test images, and the oracle: the lowest test ASR at a test ACC within the budget.

    No defence may choose its threshold like this; it shows what the clean-only rule loses.
    """
    curve = pruning.curve
    assert curve is not None
    acc, asr = truth.along(victim, curve)
    row: dict[str, Any] = {
        "threshold": None if pruning.chosen is None else curve.thresholds[pruning.chosen],
        "curve": {
            "threshold": curve.thresholds,
            "pruned": (~curve.masks).sum(1).tolist(),
            "acc_held_out": pruning.acc,
            "acc": acc,
            "asr": asr,
        },
    }
    if asr:
        points: list[tuple[float, float, float | None]] = [(untouched["asr"], untouched["acc"], None)]
        points += [
            (asr[i], acc[i], t) for i, t in enumerate(curve.thresholds) if untouched["acc"] - acc[i] <= max_acc_drop + 1e-9
        ]
        row["asr_oracle"], row["acc_oracle"], row["threshold_oracle"] = min(points, key=lambda point: point[0])
    return row
