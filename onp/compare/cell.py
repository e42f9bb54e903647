"""One cell of a table: one defence, with one seed, on one victim."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from onp.attack.triggers import load_trigger
from onp.compare.defences import DefenceConfig, Pruning, defence
from onp.compare.measure import ground_truth, oracle_threshold
from onp.compare.reactivation import reactivated, with_poisoned
from onp.compare.victims import VictimFiles
from onp.data.images import ImageSet, load_images
from onp.data.normalisation import Normalisation
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.decision import REPAIRS
from onp.defend.report.environment import hardware, versions
from onp.engine.metrics import defence_effectiveness
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.tuning import tune_pruned
from onp.model.victim import Victim, load_victim
from onp.numerics import repeatable, resolve_device, strict_float32


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
class Defended:
    """What a defence made of the victim."""

    victim: Victim
    decision: str  #: repaired, or why nothing was changed
    evaluations: int = 0
    mask: Mask | None = None  #: None for a defence that prunes nothing
    pruning: Pruning | None = None  #: how the mask was chosen, of a baseline defence


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
    victim = load_victim(files.model, files.arch, Normalisation.parse(files.norm), shape, resolve_device("auto"))
    start = time.monotonic()
    defended = apply_defence(cell, victim, clean)
    seconds = time.monotonic() - start

    trigger = load_trigger(files.trigger) if files.trigger else None
    truth = ground_truth(victim, evaluation, trigger, files.target)
    before, after = truth.figures(victim.model), truth.figures(defended.victim.model)
    row: dict[str, Any] = {f"{name}_before": value for name, value in before.items()} | after
    if "asr" in after:
        row["der"] = defence_effectiveness(before["acc"], after["acc"], before["asr"], after["asr"])
    again = truth.figures(reactivated(defended.victim, clean, cell.seed))
    row |= {f"{name}_reactivated": value for name, value in again.items() if name in ("acc", "asr")}
    if trigger is not None:
        poisoned = with_poisoned(clean, trigger, files.target, victim.classes)
        row["asr_poisoned"] = truth.figures(reactivated(defended.victim, poisoned, cell.seed))["asr"]
    row |= {"decision": defended.decision, "seconds": seconds, "evaluations": defended.evaluations, "units": victim.units}
    row["where"] = ", ".join(f"{name} {value}" for name, value in (hardware() | versions()).items())
    if defended.mask is not None:
        row["pruned"] = int((~defended.mask.keep).sum())
    if defended.pruning is not None and defended.pruning.curve is not None:
        row |= oracle_threshold(victim, truth, defended.pruning, cell.max_acc_drop)
    return row


@repeatable()
def apply_defence(cell: Cell, victim: Victim, clean: ImageSet) -> Defended:
    """Run the defence; it sees the victim and the clean images.

    On a GPU the baseline defences train in TF32, as their own code does.
    """
    name, _, tuning = cell.defence.partition("+")
    config = DefenceConfig(seed=cell.seed, passes=cell.passes, max_acc_drop=cell.max_acc_drop)
    if name == "onp":
        defended = _onp(cell)
    else:
        made = defence(name, cell.preset)(victim, clean, config)
        if isinstance(made, Victim):
            if tuning:
                raise InputError(f"The defence '{name}' trains already, so it takes no +{tuning}.")
            return Defended(made, "tuned")
        decision = "repaired" if not bool(made.mask.keep.all()) else "nothing pruned"
        defended = Defended(prune(victim, made.mask), decision, made.evaluations, made.mask, made)
    # A defence that detected no backdoor has nothing to tune away.
    if tuning and defended.mask is not None and defended.decision in REPAIRS:
        tuned = tune_pruned(defended.victim, defended.mask, tuning, clean, config)
        return Defended(tuned, defended.decision, defended.evaluations, defended.mask)
    return defended


def _onp(cell: Cell) -> Defended:
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
    return Defended(outcome.victim, report.decision, report.budget.evaluations, outcome.mask)
