"""From the masks of a run to its repaired network: pruned, and healed where that helps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onp.defend.case import Case
from onp.defend.repair_loop import Repairs
from onp.defend.run import Run
from onp.detect.bank import Bank, TriggerBank
from onp.detect.known_trigger import KnownTrigger
from onp.engine.metrics import accuracy, measure_attack, predictions
from onp.model.heal import HealTrigger, heal, heal_images
from onp.model.prune import prune
from onp.model.victim import Victim
from onp.search.mask_search import REMOVED
from onp.search.setup import batch_of

ACC_NOISE, ASR_NOISE = 0.01, 0.02  # by which healing may be worse than pruning alone on the images that both have seen


@dataclass(frozen=True, eq=False)
class Repaired:
    """What became of the network that was given."""

    network: Victim  #: that the run ends with, before --tune; the one that was given where no repair works
    repairs: Repairs | None  #: what made it
    pruned: Victim | None = None  #: the network before it was healed; None where it was not


def repaired_network(case: Case, repairs: Repairs | None, run: Run) -> Repaired:
    """Prune and heal.

    Masks that leave more than half of the surrogate ASR are kept too where healing removes so much within the accuracy budget.

    Args:
        case: network and images.
        repairs: the masks; None where nothing was to be repaired.
        run: options, settings and progress.
    """
    if repairs is None:
        return Repaired(case.victim, None)
    pruned = prune(case.victim, repairs.mask)
    healed = healed_network(case, repairs, pruned, run)
    if healed is not None:
        return Repaired(healed, replace(repairs, healed=True), pruned)
    return Repaired(pruned if repairs.works else case.victim, repairs)


def healed_network(case: Case, repairs: Repairs, pruned: Victim, run: Run) -> Victim | None:
    """The pruned network, healed; None where that is not asked for, where there are no pairs, and where it does not help.

    Args:
        case: network and images.
        repairs: the masks and their banks.
        pruned: the network with all masks applied.
        run: options, settings and progress.
    """
    banks = [repair.search.bank for repair in repairs.repairs]
    triggers = [trigger for bank in banks for trigger in heal_triggers(bank)]
    config = run.preset.heal
    if config is None or not run.config.heal or not triggers:
        return None
    clean = case.searched
    with run.stage("healing", heal_images(len(clean), config)) as stage:
        healed = heal(pruned, triggers, clean, replace(config, seed=run.seed), stage.advance)
    given, before, after = (_Standing.of(network, case, banks) for network in (case.victim, pruned, healed))
    if after.acc < before.acc - ACC_NOISE or after.asr > before.asr + ASR_NOISE:
        return None
    within = given.acc - after.acc <= run.config.max_acc_drop + 1e-9
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
