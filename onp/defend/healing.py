"""From the masks of a run to its repaired network: pruned, and healed where that helps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onp.defend.case import Case
from onp.defend.repair_loop import Repairs, repair_targets
from onp.defend.run import Run
from onp.detect.bank import Bank, TriggerBank
from onp.detect.bn_statistics import BnStatistics
from onp.detect.known_trigger import KnownTrigger, KnownTriggeredImages
from onp.detect.targets import Detection
from onp.engine.metrics import accuracy, measure_attack, predictions
from onp.model.heal import HealTrigger, heal, heal_images
from onp.model.prune import prune
from onp.model.victim import Victim
from onp.search.mask_search import REMOVED
from onp.search.setup import batch_of

PRUNING_SHARE = 0.3  # of the accuracy budget that a mask may cost where healing follows
# By which healing may be worse than pruning alone, on the images that both have seen: three images of 300 are within chance.
ACC_NOISE, ASR_NOISE = 0.01, 0.02


@dataclass(frozen=True, eq=False)
class Repaired:
    """What became of the network that was given."""

    network: Victim  #: that the run ends with, before --tune; the one that was given where no repair works
    repairs: Repairs | None  #: what made it; None where no backdoor was found
    pruned: Victim | None = None  #: the network before it was healed; None where it was not


def repaired_network(case: Case, detection: Detection | None, bn: BnStatistics, run: Run) -> Repaired:
    """Prune and heal: by a mask that costs little where one stops the triggers, else by one that may cost the whole budget.

    Healing removes what is left of the ASR, for less accuracy than the larger mask costs; it does not replace a mask, without
    which triggers survive that none of the inverted ones resembles (docs/ablations.md).

    Args:
        case: network and images.
        detection: of the network; None for a known trigger.
        bn: BN statistics of the network.
        run: options, settings, progress and store.
    """
    heals = _heals(case, run)
    searching = replace(run, preset=run.preset.with_budget_parts((PRUNING_SHARE, 1.0))) if heals else run
    repairs = repair_targets(case, detection, bn, searching)
    if repairs is None:
        return Repaired(case.victim, None)
    pruned = prune(case.victim, repairs.mask)
    healed = healed_network(case, repairs, pruned, run) if heals else None
    if healed is not None:
        return Repaired(healed, replace(repairs, healed=True), pruned)
    return Repaired(pruned if repairs.works else case.victim, repairs)


def _heals(case: Case, run: Run) -> bool:
    """Whether a pruned network is healed: not where that is not wanted, nor from images that carry a trigger."""
    return run.preset.heal is not None and run.config.heal and not isinstance(case.known_trigger, KnownTriggeredImages)


def healed_network(case: Case, repairs: Repairs, pruned: Victim, run: Run) -> Victim | None:
    """The pruned network, healed; None where that does not help, or where mask and healing together do not stop the triggers.

    Args:
        case: network and images.
        repairs: the masks and their banks.
        pruned: the network with all masks applied.
        run: options, settings and progress.
    """
    banks = [repair.search.bank for repair in repairs.repairs]
    triggers = [trigger for bank in banks for trigger in heal_triggers(bank)]
    config = run.preset.heal
    assert config is not None and triggers
    clean = case.searched
    with run.stage("healing", heal_images(len(clean), config)) as stage:
        healed = heal(pruned, triggers, clean, replace(config, seed=run.seed), stage.advance)
    given, before, after = (_Standing.of(network, case, banks) for network in (case.victim, pruned, healed))
    allowed = given.acc - run.config.max_acc_drop
    if after.acc < min(before.acc, allowed) - ACC_NOISE or after.asr > before.asr + ASR_NOISE:
        return None
    within = after.acc >= allowed - 1e-9
    stopped = all(now <= (1 - REMOVED) * was for now, was in zip(after.by_bank, given.by_bank, strict=True))
    return healed if repairs.works or (within and stopped) else None


def heal_triggers(bank: Bank) -> tuple[HealTrigger, ...]:
    """The triggers of a bank; none where there are only images that carry one."""
    if isinstance(bank, TriggerBank):
        return tuple(
            HealTrigger(surrogate.apply, weight) for surrogate, weight in zip(bank.surrogates, bank.weights, strict=True)
        )
    return (HealTrigger(bank.trigger, 1.0),) if isinstance(bank, KnownTrigger) else ()


@dataclass(frozen=True)
class _Standing:
    """What a network does on the images that the repair has seen."""

    acc: float
    by_bank: tuple[float, ...]  #: surrogate ASR of each bank, weighted over its families

    @property
    def asr(self) -> float:
        return max(self.by_bank)

    @staticmethod
    def of(network: Victim, case: Case, banks: list[Bank]) -> _Standing:
        batch = batch_of(network, case.searched)
        rates = []
        for bank in banks:
            triggered = bank.batches(case.victim, bank.scoring_images(case.clean))
            shares = [measure_attack(network.model, [each])[0] for each in triggered]
            found = zip(bank.weights, shares, strict=True)
            rates.append(sum(weight * share.value for weight, share in found if share is not None))
        return _Standing(accuracy(batch.labels, predictions(network.model, batch.images)).value, tuple(rates))
