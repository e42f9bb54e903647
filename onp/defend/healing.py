"""From the masks of a run to its repaired network: pruned, and healed where that helps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onp.data.images import ImageSet
from onp.defend.case import Case
from onp.defend.repair_loop import Repairs, repair_targets
from onp.defend.run import Run
from onp.detect.bank import Bank, TriggerBank
from onp.detect.blend import BLEND, fit_blends
from onp.detect.blend import STEPS as BLEND_STEPS
from onp.detect.bn_statistics import BnStatistics
from onp.detect.inversion import InversionTask
from onp.detect.known_trigger import KnownTrigger, KnownTriggeredImages
from onp.detect.targets import Detection
from onp.engine.differentiable import fitting_logits
from onp.engine.metrics import measure, measure_attack
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.heal import HealTask, HealTrigger, heal, heal_images
from onp.model.prune import prune
from onp.model.victim import Victim
from onp.search.mask_search import REMOVED
from onp.search.setup import batch_of

PRUNING_SHARE = 0.3  # of the accuracy budget that a mask may cost where healing follows
# By which one network may be worse than another on the images that both have seen: that much is within chance.
ACC_NOISE, ASR_NOISE = 0.01, 0.02
# ACC that unseen images lose, a share, for each nat of KL divergence from the network as given on the images of the repair: on
# 47 backdoored networks of the zoo with an error (root mean square) of 1 point. What these images themselves lose says nothing
# (an error of 2 points, docs/ablations.md): the mask was chosen by them.
ACC_LOST_PER_NAT = 0.3
BLENDED = 0.5  # weight of images that are mixed in without evidence, beside 1 of the triggers of the bank
# Names of the stages of healing, and their teachers.
TEACHERS = {
    "healing": ("pruned",),
    "healing, for more accuracy": ("pruned", "given"),
    "healing, for the accuracy of the network as given": ("given",),
}


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
    seen = _Seen.of(case, repairs.banks)
    given, before = (seen.standing(network) for network in (case.victim, pruned))
    budget = run.config.max_acc_drop
    after = _healed(seen, repairs, pruned, given, run)
    lost = after.expected_acc_loss(given)
    if lost > max(before.expected_acc_loss(given), budget) + ACC_NOISE or after.asr > before.asr + ASR_NOISE:
        return None
    stopped = all(now <= (1 - REMOVED) * was for now, was in zip(after.by_bank, given.by_bank, strict=True))
    return after.network if repairs.works or (lost <= _most_lost(run) and stopped) else None


def _most_lost(run: Run) -> float:
    """The expected loss of ACC, a share, beyond which a healed network is refused where no mask works.

    That is what exceeds the budget clearly: the backdoor that would be left is worse than what an estimate is off by.
    """
    budget = run.config.max_acc_drop
    return budget + min(budget, ACC_NOISE)


def _healed(seen: _Seen, repairs: Repairs, pruned: Victim, given: _Standing, run: Run) -> _Standing:
    """Healed with the pruned network as teacher; where that costs more than the budget, with the network as given beside it, or
    with that alone, as far as the triggers are stopped as well, or no mask works and nothing else is within what is allowed.

    The network as given is the more accurate teacher. But it teaches some backdoors back, which the inverted triggers show as a
    rule.
    """
    config = run.preset.heal
    assert config is not None
    triggers = [trigger for bank in repairs.banks for trigger in (*heal_triggers(bank), *_blends(bank, seen, given, run))]
    networks, found = {"pruned": pruned, "given": given.network}, list[_Standing]()
    for name, teachers in TEACHERS.items():
        task = HealTask(pruned, triggers, seen.images, [networks[each] for each in teachers])
        with run.stage(name, heal_images(len(seen.images), config)) as stage:
            healed = heal(task, replace(config, seed=run.seed), stage.advance)
        found.append(seen.standing(healed))
        as_good = [each for each in found if each.asr <= found[0].asr + ASR_NOISE]
        best = min(as_good, key=lambda each: each.expected_acc_loss(given))
        if best.expected_acc_loss(given) <= run.config.max_acc_drop or not repairs.mask.pruned_count:
            break
    if repairs.works or best.expected_acc_loss(given) <= _most_lost(run):
        return best
    # One that stops the triggers less well is better than none.
    within = (each for each in found if each.expected_acc_loss(given) <= _most_lost(run))
    return min(within, key=lambda each: each.asr, default=best)


def heal_triggers(bank: Bank) -> tuple[HealTrigger, ...]:
    """The triggers of a bank; none where there are only images that carry one."""
    if isinstance(bank, TriggerBank):
        return tuple(
            HealTrigger(surrogate.apply, weight) for surrogate, weight in zip(bank.surrogates, bank.weights, strict=True)
        )
    return (HealTrigger(bank.trigger, 1.0),) if isinstance(bank, KnownTrigger) else ()


def _blends(bank: Bank, seen: _Seen, given: _Standing, run: Run) -> list[HealTrigger]:
    """Images to mix in that lead to the class of a bank of inverted triggers, where it has none for want of evidence.

    An attacker's trigger may be far stronger than those that were inverted, whatever it is.
    """
    if not isinstance(bank, TriggerBank) or any(surrogate.family == BLEND for surrogate in bank.surrogates):
        return []
    pixels, labels = seen.images.pixels().to(run.device), seen.images.labels.to(run.device)
    targets = (bank.target,) * run.preset.detect.starts
    task = InversionTask((fitting_logits(given.network),), pixels, labels, targets)
    with run.stage("fitting images to mix in", BLEND_STEPS) as stage:
        blends = fit_blends(task, run.preset.detect.refine.images, run.detecting(stage))
    return [HealTrigger(partial(blends.apply, row=row), BLENDED / len(targets)) for row in range(len(targets))]


@dataclass(frozen=True, eq=False)
class _Standing:
    """What a network does on the images that the repair has seen."""

    network: Victim
    probabilities: Tensor  #: float32 `[N, classes]`, of the clean images
    by_bank: tuple[float, ...]  #: surrogate ASR of each bank, weighted over its families

    @property
    def asr(self) -> float:
        return max(self.by_bank)

    def expected_acc_loss(self, given: _Standing) -> float:
        """ACC that unseen images lose against the network as given, a share; infinite where training diverged."""
        least = torch.finfo(torch.float32).tiny
        before, after = (each.probabilities.clamp_min(least) for each in (given, self))
        lost = ACC_LOST_PER_NAT * float((before * (before / after).log()).sum(1).mean())
        return lost if math.isfinite(lost) else math.inf


@dataclass(frozen=True, eq=False)
class _Seen:
    """The images that the repair has seen, and those with a trigger on, which are made once for all networks."""

    images: ImageSet
    clean: Batch
    triggered: tuple[tuple[tuple[float, TriggeredBatch], ...], ...]  #: of each bank, with the weights of its families

    @staticmethod
    def of(case: Case, banks: list[Bank]) -> _Seen:
        batches = (
            tuple(zip(bank.weights, bank.batches(case.victim, bank.scoring_images(case.clean)), strict=True)) for bank in banks
        )
        return _Seen(case.searched, batch_of(case.victim, case.searched), tuple(batches))

    def standing(self, network: Victim) -> _Standing:
        """What a network does on them."""
        rates = []
        for batches in self.triggered:
            shares = ((weight, measure_attack(network.model, [batch])[0]) for weight, batch in batches)
            rates.append(sum(weight * share.value for weight, share in shares if share is not None))
        return _Standing(network, measure(network.model, [self.clean]).probabilities, tuple(rates))
