"""The repair of one target class after another.

Several classes are repaired only where every pass of detection found each of them, see `onp.detect.targets`. The second one is
searched for on the network repaired for the first, if detection still finds it there: pruning often removes both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onp.defend.case import Case
from onp.defend.run import Run
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import Bank, TargetClass, TriggerBank, inversion_steps, invert_triggers
from onp.detect.blend import BLEND, EVIDENCE
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import BnStatistics
from onp.detect.scan import scan_steps
from onp.detect.targets import Detection, Pass, evident
from onp.engine.metrics import accuracy, predictions
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.search.mask_search import SearchResult, SurvivingTriggers, search_mask
from onp.search.setup import SearchRun, batch_of


@dataclass(frozen=True, eq=False)
class Repair:
    """The repair of one class."""

    target: int
    search: SearchResult


@dataclass(frozen=True, eq=False)
class Repairs:
    """The repairs of all target classes."""

    repairs: tuple[Repair, ...]  #: in order; all but the last one work
    passes_after: tuple[Pass, ...]  #: of the network as repaired so far, after each repair that left classes open
    mask: Mask  #: of all repairs together
    healed: bool = False  #: whether the network was healed after the pruning, and works

    @property
    def works(self) -> bool:
        """Whether every mask, or healing after it, stops its triggers within the accuracy budget."""
        return self.healed or all(repair.search.works for repair in self.repairs)

    @property
    def banks(self) -> list[Bank]:
        """The triggers of each class, in order."""
        return [repair.search.bank for repair in self.repairs]

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes, in order."""
        return tuple(repair.target for repair in self.repairs)


SearchFor = Callable[[Case, Bank, DetectionScores | None, BnStatistics, Run], SearchResult]
"""Searches the mask for one bank, as `search_for` does: from case, bank, detection scores, BN statistics and run."""


def search_for(case: Case, bank: Bank, scores: DetectionScores | None, bn: BnStatistics, run: Run) -> SearchResult:
    """`onp.search.mask_search.search_mask` as a stage of the run.

    Args:
        case: network and images.
        bank: triggers of the target class.
        scores: of detection; None for a known trigger, whose bank is never extended.
        bn: BN statistics of the network.
        run: settings, seed, progress and store.
    """
    search, extend = run.preset.search, None
    if scores is not None:
        inversion = run.detecting()
        extend = SurvivingTriggers(case.victim, case.clean, scores, inversion, search.anomalous)
    with run.stage("searching for the mask", len(search.budget_parts) * search.method.max_evaluations) as stage:
        progress = run.monitor.search_progress(stage)
        settings = SearchRun(search, run.seed, store=run.store, progress=progress, extend_bank=extend)
        return search_mask(case.victim, case.clean, bank, bn, settings)


def repair_targets(
    case: Case, detection: Detection | None, bn: BnStatistics, run: Run, search_for: SearchFor = search_for
) -> Repairs | None:
    """Search a mask for the known trigger, or for each detected target class in turn.

    Every search starts with the network as repaired so far and has what is left of the accuracy budget. The first mask that
    does not work ends the loop.

    Args:
        case: network and images.
        detection: of the network as given; None for a known trigger.
        bn: BN statistics of the network as given.
        run: settings, seeds, progress and store.
        search_for: searches the mask of one target class; onp's own unless a baseline takes its place.

    Returns:
        None where no backdoor was found.
    """
    if detection is None:
        assert case.known_trigger is not None
        search = search_for(case, case.known_trigger, None, bn, run)
        return Repairs((Repair(case.known_trigger.target, search),), (), search.mask)
    scores, left = detection.scores, list(detection.targets)
    repaired, keep = case, Mask.of(case.victim).keep
    repairs: list[Repair] = []
    passes_after: list[Pass] = []
    while left:
        part = after_loss(case, repaired, run).fork("target", len(repairs))
        # Pruning changes the means of the channels, so triggers match the residual of the network as given only.
        match = None if repairs else bn_match(case.victim, bn)
        bank = inverted_bank(repaired, TargetClass(left[0], scores, match), part)
        search = search_for(repaired, bank, scores, bn, part)
        repairs.append(Repair(left[0], search))
        keep = keep & search.mask.keep
        if len(left) == 1 or not search.works:
            break
        repaired = replace(case, victim=prune(case.victim, Mask.of(case.victim, keep)))
        # Its norms hold the means of the network as given: they still tell units apart, but not classes.
        nothing = BnStatistics.nothing(repaired.victim, case.searched)
        again = run.fork("target", len(repairs)).fork("pass")
        with run.stage("detecting on the repaired network", scan_steps(run.preset.detect)) as stage:
            after = Pass.of(repaired.victim, case.clean, nothing, again.detecting(stage), detection.verdict)
        passes_after.append(after)
        scores, left = after.scores, [k for k in evident(after.probabilities, detection.verdict) if k in left[1:]]
    return Repairs(tuple(repairs), tuple(passes_after), Mask.of(case.victim, keep)) if repairs else None


def target_classes(case: Case, detection: Detection | None, repairs: Repairs | None) -> tuple[int, ...]:
    """The classes that a run has evidence for: those that were to be repaired, or else all that detection found.

    Args:
        case: its known trigger stands for detection where there is none.
        detection: of the network; None for a known trigger.
        repairs: None where nothing was to be repaired.
    """
    if repairs is not None:
        return repairs.targets
    if detection is not None:
        return detection.targets
    assert case.known_trigger is not None
    return (case.known_trigger.target,)


def held_out_triggers(
    case: Case, detection: Detection | None, repairs: Repairs | None, bn: BnStatistics, run: Run
) -> list[Bank]:
    """Triggers for each target class, which neither detection nor search has seen: the known one, or some inverted again.

    Where a class was repaired, they are of the families that its search had, since others hardly count in the ASR. There are no
    images to mix in among them: these lead networks without a backdoor to any class as well.

    Args:
        case: network and images.
        detection: of the network; None for a known trigger.
        repairs: None where nothing was to be repaired.
        bn: BN statistics of the network.
        run: settings, progress and store; seeds are those of the "audit".
    """
    if detection is None:
        assert case.known_trigger is not None
        return [case.known_trigger]
    run = run.fork("audit")
    scores = DetectionScores.of({name: costs for name, costs in detection.scores.log_costs.items() if name != EVIDENCE})
    families = {} if repairs is None else {bank.target: _families(bank) for bank in repairs.banks}
    banks: list[Bank] = []
    for target in target_classes(case, detection, repairs):
        # The residual is that of all backdoors together; it is taken for the first one's.
        match = None if banks else bn_match(case.victim, bn)
        banks.append(inverted_bank(case, TargetClass(target, scores, match, families.get(target)), run))
    return banks


def _families(bank: Bank) -> frozenset[str] | None:
    """Of the bank, without images to mix in; None where that leaves none."""
    if not isinstance(bank, TriggerBank):
        return None
    return frozenset(surrogate.family for surrogate in bank.surrogates) - {BLEND} or None


def after_loss(case: Case, repaired: Case, run: Run) -> Run:
    """The run with what is left of the accuracy budget.

    Args:
        case: with the network as given.
        repaired: the same with the network as repaired so far, or `case` itself.
        run: with the whole budget.
    """
    if repaired is case:
        return run
    spent = max(_accuracy(case) - _accuracy(repaired), 0.0)
    return replace(run, preset=run.preset.with_objective(run.preset.search.objective.after_loss(spent)))


def inverted_bank(case: Case, target: TargetClass, run: Run) -> Bank:
    """`onp.detect.bank.invert_triggers` as a stage of the run."""
    with run.stage("inverting triggers", inversion_steps(run.preset.detect)) as stage:
        return invert_triggers(case.victim, target, case.clean, run.detecting(stage))


def _accuracy(case: Case) -> float:
    batch = batch_of(case.victim, case.searched)
    return accuracy(batch.labels, predictions(case.victim.model, batch.images)).value
