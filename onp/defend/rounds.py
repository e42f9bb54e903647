"""Which class a backdoor leads to where several stand out alike, and a repair for each class that needs one.

A short look ranks classes by triggers that are far from minimal. It may rank two alike that a longer one tells apart, or let
one barely count that does not: then every class is looked at again with more steps. Where several stand out even so, each may
be the target of its own backdoor: one is repaired, the others are asked about again on the repaired network, and those that
still stand out are repaired too.
Where the first look is clear, none of this happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onp.data.images import ImageSet, Splits, joined
from onp.defend.config import DefendConfig
from onp.defend.monitor import Monitor
from onp.defend.presets import Preset
from onp.detect.anomaly import Scan
from onp.detect.bank import Bank, BankConfig, TriggerBank, build_bank, refine_steps, scan, scan_steps
from onp.detect.bn_match import Recall, recall
from onp.engine.differentiable import fitting_logits
from onp.engine.metrics import accuracy, predictions
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.victim import Victim
from onp.search.mask_search import REMOVED, Found, search
from onp.search.setup import batch_of

BARELY = 1.0  # suspicion over the threshold below which one class may be a quirk of a short look; two loud witnesses give that
CLOSE = 3.0  # suspicion by which two classes are told apart at the first look; one that any square leads to was 3.4 behind
LONGER = 2.5  # times the steps: what it took for a 4x4 patch, dearer than other classes after 40 steps, to cost half of theirs
CLOSER, NEXT = 500, 10_000  # added to the seeds of the closer look and of each round after the first


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of the network as it was given."""

    first: Scan
    closer: Scan | None  #: with `LONGER` times the steps; None where no second class came close

    @property
    def scan(self) -> Scan:
        """The one that counts."""
        return self.closer or self.first


@dataclass(frozen=True, eq=False)
class Round:
    """The repair of one class."""

    target: int
    found: Found

    @property
    def works(self) -> bool:
        """Whether a mask within the accuracy budget takes most of the surrogate triggers' success away."""
        outcome = self.found.results[-1].outcome
        return bool(outcome.acceptable) and float(outcome.asr) <= (1 - REMOVED) * self.found.asr_before


@dataclass(frozen=True, eq=False)
class Rounds:
    """The repair of all classes that stand out; it holds if every round works, of which the last alone may not."""

    rounds: tuple[Round, ...]
    asked: tuple[Scan, ...]  #: every class again, on the network as repaired so far, after a round that left others open
    mask: Mask  #: of all rounds together

    @property
    def works(self) -> bool:
        return all(each.works for each in self.rounds)

    def advice(self, max_acc_drop: float) -> str:
        """Which larger budget would have allowed a mask that works, as a sentence; empty where the search met none, and where
        earlier rounds had spent some of the budget."""
        price = self.rounds[-1].found.price
        share = 0.0 if price is None else math.ceil(200 * price - 1e-3) / 200
        if len(self.rounds) > 1 or not max_acc_drop < share < 1:
            return ""
        return f" --max-acc-drop {share:g} would have allowed a mask that takes most of that away."


def over(seen: Scan, threshold: float) -> list[int]:
    """The classes that count as targets, loudest first."""
    found = [k for k, suspicion in enumerate(seen.suspicion) if suspicion >= threshold]
    return sorted(found, key=lambda k: -seen.suspicion[k])


def targets(seen: Look, threshold: float) -> list[int]:
    """The classes to repair: the loudest, and after a close call every other one that counts at both looks."""
    loud = over(seen.scan, threshold)
    return loud[:1] + [k for k in loud[1:] if seen.closer is not None and seen.first.suspicion[k] >= threshold]


def close_call(seen: Scan, threshold: float) -> bool:
    """Whether a second class counts as a target within `CLOSE` of the loudest, or one barely does, by fitted triggers only."""
    loudest = over(seen, threshold)[:2]
    if len(loudest) == 2 and seen.suspicion[loudest[0]] - seen.suspicion[loudest[1]] <= CLOSE:
        return True
    if not loudest or seen.suspicion[loudest[0]] >= threshold + BARELY:
        return False
    return seen.unfitted is None or seen.unfitted.suspicion[loudest[0]] < threshold


def longer(config: BankConfig) -> BankConfig:
    """The same with `LONGER` times the steps."""
    steps = round(LONGER * config.scan.steps), round(LONGER * config.refine.steps)
    return replace(config, scan=replace(config.scan, steps=steps[0]), refine=replace(config.refine, steps=steps[1]))


def bank_config(seen: Look, preset: Preset) -> BankConfig:
    """How triggers are fitted after that look: as the preset says, or as long as the closer look took."""
    return preset.bank if seen.closer is None else longer(preset.bank)


def look(victim: Victim, splits: Splits, config: DefendConfig, preset: Preset, monitor: Monitor) -> Look:
    """Ask every witness about every class, and where it is a close call once more with more steps."""
    first = _scan("looking for a trigger", victim, splits, config.seed, preset.bank, monitor)
    if not close_call(first, preset.bank.threshold):
        return Look(first, None)
    return Look(first, _scan("looking closer", victim, splits, config.seed + CLOSER, longer(preset.bank), monitor))


def repair_classes(
    victim: Victim, splits: Splits, seen: Look, config: DefendConfig, preset: Preset, monitor: Monitor
) -> Rounds | None:
    """Repair the class that stands out, and after a close call every other one that does; None where none does.

    Each round begins with the network as repaired so far and has what is left of the accuracy budget.
    """
    threshold = preset.bank.threshold
    left = targets(seen, threshold)
    settings = bank_config(seen, preset)
    current, scanned, keep = victim, seen.scan, Mask.of(victim).keep
    rounds: list[Round] = []
    asked: list[Scan] = []
    while left:
        target, seed = left[0], config.seed + NEXT * len(rounds)
        now = replace(preset, bank=settings)
        if rounds:
            spent = max(_accuracy(victim, splits) - _accuracy(current, splits), 0.0)
            objective = preset.search.objective
            drops = (max(drop - spent, 0.0) for drop in (objective.max_acc_drop, objective.budget))
            objective = replace(objective, **dict(zip(("max_acc_drop", "budget"), drops, strict=True)))
            now = replace(now, search=replace(preset.search, objective=objective))
        # Pruned channels no longer have the means of the training images, so only the network as given remembers.
        known = None if rounds else recall_of(current, splits, now)
        bank = fit_bank("fitting surrogate triggers", current, scanned, target, splits, seed, now, monitor, known)
        rounds.append(Round(target, search_mask(current, splits, bank, scanned, seed, now, monitor)))
        keep = keep & rounds[-1].found.mask.keep
        if len(left) == 1 or not rounds[-1].works:
            break
        current = repair(victim, Mask.of(victim, keep))
        scanned = _scan("looking again", current, splits, seed + NEXT + CLOSER, settings, monitor)
        asked.append(scanned)
        left = [k for k in over(scanned, threshold) if k in left[1:]]
    return Rounds(tuple(rounds), tuple(asked), Mask.of(victim, keep)) if rounds else None


def fit_bank(
    stage: str,
    victim: Victim,
    seen: Scan,
    target: int,
    splits: Splits,
    seed: int,
    preset: Preset,
    monitor: Monitor,
    known: Recall | None,
) -> TriggerBank:
    """`build_bank` as a stage of a run."""
    with monitor.stage(stage, refine_steps(preset.bank)) as bar:
        models = (fitting_logits(victim),)
        return build_bank(victim, models, seen, target, splits.build, splits.score, seed, preset.bank, bar.advance, known)


def recall_of(victim: Victim, splits: Splits, preset: Preset) -> Recall | None:
    """What the norms remember of the attack, for fitting triggers; None where the preset does not ask or they say nothing."""
    if not preset.bank.refine.recall:
        return None
    images = joined(splits.build, splits.score)
    return recall(victim, images.pixels(), images.labels)


def search_mask(
    victim: Victim, splits: Splits, bank: Bank, seen: Scan | None, seed: int, preset: Preset, monitor: Monitor
) -> Found:
    """`search` as a stage of a run."""
    with monitor.stage("searching for the mask", preset.search.agent.max_evaluations) as bar:
        return search(victim, splits, bank, seen, seed, preset.bank, preset.search, monitor.steps(bar))


def told(seen: Look, repairs: Rounds | None, threshold: float, images: ImageSet) -> tuple[str, ...]:
    """What was seen of other classes than the loudest, a sentence each; empty where none counts as a target."""
    doubtful = over(seen.first, threshold)
    if seen.closer is None:
        if len(doubtful) < 2 or repairs is None or not repairs.works:
            return ()
        return (
            f"Far behind, {_named(doubtful[1:], seen.first, images)} would count as well; to ask about it once more, give the "
            "repaired checkpoint as --model.",
        )
    notes = [
        f"{_named(doubtful, seen.first, images)} stood out {'nearly alike' if len(doubtful) > 1 else 'barely'}, so every class "
        f"was looked at again with {LONGER:g} times the steps: {_named(doubtful, seen.closer, images)}."
    ]
    if repairs is not None:
        left = targets(seen, threshold)[1:]
        for each, scanned in zip(repairs.rounds, repairs.asked, strict=False):
            still = [k for k in over(scanned, threshold) if k in left]
            fate = "not counted" if not still else f"counted, and {images.name(still[0])} repaired next"
            notes.append(f"On the network repaired for {images.name(each.target)}: {_named(left, scanned, images)}; {fate}.")
            left = still[1:]
    return tuple(notes)


def evidence(seen: Look | None, repairs: Rounds | None) -> dict[str, object]:
    """What the looks and the banks of a run say, for the report: suspicion, witnesses, and every surrogate trigger."""
    said: dict[str, object] = {}
    if seen is not None:
        said = {"suspicion": seen.scan.suspicion, "witnesses": seen.scan.witnesses}
        if seen.closer is not None:
            again = [] if repairs is None else [scanned.suspicion for scanned in repairs.asked]
            said |= {"first_look": seen.first.suspicion, "looks_after_repairs": again}
    banks = [] if repairs is None else [each.found.bank for each in repairs.rounds]
    names = ("family", "target", "weight", "evidence", "success", "cost", "match")
    found = [{name: getattr(each, name) for name in names} for bank in banks if isinstance(bank, TriggerBank)
             for each in bank.surrogates]  # fmt: skip
    return said | ({"surrogates": found} if found else {})


def _named(classes: list[int], seen: Scan, images: ImageSet) -> str:
    return ", ".join(f"{images.name(k)} ({seen.suspicion[k]:.1f})" for k in classes)


def _scan(stage: str, victim: Victim, splits: Splits, seed: int, config: BankConfig, monitor: Monitor) -> Scan:
    with monitor.stage(stage, scan_steps(config)) as bar:
        return scan(victim, splits.build, splits.score, seed, config, bar.advance)


def _accuracy(victim: Victim, splits: Splits) -> float:
    batch = batch_of(victim, splits.build, splits.score)
    return accuracy(batch.labels, predictions(victim.model, batch.images)).value
