"""Healing after the pruning: kept where it helps, apart from the pruning in the report, and enough where no mask is."""

import itertools
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers.small_backdoor import Stamp, clean_images

from onp.data.images import ImageSet, split
from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.healing import BLENDED, heal_triggers, healed_network, repaired_network
from onp.defend.presets import PRESETS
from onp.defend.repair_loop import repair_targets
from onp.defend.run import Run
from onp.detect.bank import Surrogate, TriggerBank
from onp.detect.blend import BLEND, WEIGHT
from onp.detect.bn_statistics import bn_statistics
from onp.detect.known_trigger import KnownTrigger, KnownTriggeredImages
from onp.engine.metrics import Share, attack_success, predictions
from onp.model.edit import with_tensors
from onp.model.heal import HealConfig, heal
from onp.model.prune import prune


def a_run(small, share=0.05):
    return Run(DefendConfig(max_acc_drop=share, quiet=True), small.PRESET.with_max_acc_drop(share))


@pytest.fixture(scope="module")
def case(small, backdoored):
    return small.case(backdoored.victim)


@pytest.fixture(scope="module")
def bn(case):
    return bn_statistics(case.victim, case.searched)


@pytest.fixture(scope="module")
def found(case, small, bn):
    """A run and the mask that it found for the known trigger."""
    run = a_run(small)
    return run, repair_targets(case, None, bn, run)


def with_heal(run, heal):
    return replace(run, preset=replace(run.preset, heal=heal))


def test_the_repaired_network_is_pruned_a_little_and_healed(case, bn, small, found):
    result = repaired_network(case, None, bn, a_run(small))
    assert result.repairs.healed and result.repairs.works and result.network is not result.pruned
    for key, tensor in prune(case.victim, result.repairs.mask).model.state_dict().items():
        assert torch.equal(result.pruned.model.state_dict()[key], tensor), "the pruning alone is kept beside it"
    _, whole_budget = found
    assert result.repairs.mask.pruned_count <= whole_budget.mask.pruned_count


def test_healing_is_left_out_where_it_is_not_wanted(case, bn, small, found):
    run, whole_budget = found
    carrying = replace(case, known_trigger=KnownTriggeredImages(stamped(), 0))
    for given, without in (
        (case, with_heal(run, None)),
        (case, replace(run, config=replace(run.config, heal=False))),
        (carrying, run),
    ):
        result = repaired_network(given, None, bn, without)
        assert result.pruned is None and not result.repairs.healed and result.network is not case.victim
        if given is case:
            assert torch.equal(result.repairs.mask.keep, whole_budget.mask.keep), "the mask may cost the whole budget"


def stamped():
    images = clean_images()
    triggered = (Stamp()(images.pixels()) * 255).round().byte()
    return split(ImageSet(triggered, images.labels, images.class_names).subset(images.labels != 0), 0)


def test_healing_that_ruins_the_network_is_dropped(case, found):
    run, repairs = found
    pruned = prune(case.victim, repairs.mask)
    assert healed_network(case, repairs, pruned, with_heal(run, HealConfig(lr=1e4, max_grad_norm=1e9))) is None


def test_healing_stops_a_backdoor_that_no_mask_stops(case, small, backdoored):
    """Two evaluations and no accuracy to give leave the search without a mask; five points are enough for healing."""
    run = a_run(small)
    search = run.preset.search
    search = replace(search, objective=search.objective.with_budget(0.0), method=replace(search.method, max_evaluations=2))
    run = replace(run, preset=replace(run.preset, search=search, heal=HealConfig(depth=0.4, lr=0.05)))
    repairs = repair_targets(case, None, bn_statistics(case.victim, case.searched), run)
    assert not repairs.works
    outcome = run_pipeline(case, run)
    (triggered,) = backdoored.score_triggered
    left = attack_success(triggered.labels, predictions(outcome.victim.model, triggered.images), 0).value
    assert outcome.report.decision == "repaired" and outcome.report.changed and left < 0.2
    assert "which alone leaves an ASR of" in outcome.report.reason and "trained to ignore" in outcome.report.reason
    document = json.loads(outcome.report.to_json())
    assert document["pruning"]["asr_surrogate"]["known"]["value"] > 0.5 > document["after"]["asr_surrogate"]["known"]["value"]


def test_healing_that_diverges_to_nan_is_dropped(case, found):
    run, repairs = found
    pruned = prune(case.victim, repairs.mask)
    weights = {key: torch.full_like(tensor, torch.nan) for key, tensor in pruned.program.named_parameters()}
    with (
        mock.patch("onp.defend.healing.heal", lambda *_: with_tensors(pruned, weights)),
        mock.patch(
            "onp.defend.healing.measure_attack", lambda *_: (Share(0, 10), None)
        ),  # its class is no other than the first
    ):
        assert healed_network(case, repairs, pruned, run) is None


def test_more_accurate_teachers_are_tried_where_healing_costs_more_than_the_budget(case, found):
    run, repairs = found
    pruned, asked = prune(case.victim, repairs.mask), []

    def learned(task, config, advance):
        asked.append(["given" if each is case.victim else "pruned" for each in task.teachers])
        return heal(task, config, advance)

    def healed_within(share):
        asked.clear()
        with mock.patch("onp.defend.healing.heal", learned):
            found = healed_network(case, repairs, pruned, replace(run, config=replace(run.config, max_acc_drop=share)))
        return found, list(asked)

    first, teachers = healed_within(1.0)
    assert teachers == [["pruned"]] and first is not None
    again, teachers = healed_within(1e-9)
    assert teachers == [["pruned"], ["pruned", "given"], ["given"]]
    x = case.victim.normalisation(case.searched.pixels())
    changes = [(net.model(x).softmax(1) - case.victim.model(x).softmax(1)).abs().mean() for net in (first, again)]
    assert changes[1] < changes[0], "the more accurate one is kept"


@dataclass(frozen=True, eq=False)
class Standing:
    """What healing with one teacher comes to: surrogate ASR and the accuracy that unseen images lose."""

    network: object
    asr: float
    lost: float

    @property
    def by_bank(self):
        return (self.asr,)

    def expected_acc_loss(self, given):
        return self.lost


@pytest.mark.parametrize(
    ("healed", "kept", "works"),
    [
        (((0.06, 0.021), (0.087, 0.009), (0.10, 0.004)), 0, True),  # the mask works by itself, and costs as much
        (
            ((0.06, 0.021), (0.087, 0.009), (0.10, 0.004)),
            1,
            False,
        ),  # the first costs more than two points, the others leave more
        (((0.06, 0.019), (0.087, 0.009), (0.10, 0.004)), 0, False),  # it costs more than the budget, but not clearly
        (((0.06, 0.019), (0.079, 0.013), (0.08, 0.012)), 2, False),  # all stop the triggers as well
        (((0.06, 0.021), (0.087, 0.022), (0.10, 0.03)), None, False),
        (((0.06, 0.021), (0.6, 0.009), (0.7, 0.004)), None, False),  # what is affordable leaves more than half of the ASR
    ],
)
def test_a_healed_network_that_stops_the_triggers_less_well_is_better_than_none(case, found, healed, kept, works):
    run = replace(found[0], config=replace(found[0].config, max_acc_drop=0.01))
    repairs = SimpleNamespace(banks=[], works=works, mask=SimpleNamespace(pruned_count=1))
    standings = iter([Standing(case.victim, 0.97, 0.0), Standing("pruned", 0.77, 0.015)])
    standings = itertools.chain(standings, (Standing(number, *each) for number, each in enumerate(healed)))
    with (
        mock.patch("onp.defend.healing.heal", lambda *_: None),
        mock.patch("onp.defend.healing._Seen.standing", lambda seen, network: next(standings)),
    ):
        assert healed_network(case, repairs, "pruned", run) == kept


@pytest.mark.parametrize(("family", "mixed_in"), [("patch", True), (BLEND, False)])
def test_banks_without_evidence_for_them_heal_with_images_mixed_in_too(case, found, family, mixed_in):
    run, repairs = found
    pruned, seen = prune(case.victim, repairs.mask), []
    bank = TriggerBank((Surrogate(family, 0, 3.0, 1.0, 1.0, None, Stamp()),), (1.0,), 0)
    inverted = replace(
        repairs, repairs=tuple(replace(each, search=replace(each.search, bank=bank)) for each in repairs.repairs)
    )

    def learned(task, config, advance):
        seen[:] = task.triggers
        return heal(task, config, advance)

    with mock.patch("onp.defend.healing.heal", learned):
        healed_network(case, inverted, pruned, run)
    starts = run.preset.detect.starts
    assert [each.weight for each in seen] == [1.0] + [BLENDED / starts] * starts * mixed_in
    images = case.searched.pixels()
    for each in seen[1:]:
        change = (each.apply(images) - images).abs()
        assert 0 < float(change.amax()) <= WEIGHT


def test_only_banks_with_triggers_heal(case):
    images = split(clean_images(), 0)
    (known,) = heal_triggers(KnownTrigger(Stamp(), 0))
    assert known.weight == 1 and torch.equal(known.apply(images.build.pixels()), Stamp()(images.build.pixels()))
    assert heal_triggers(KnownTriggeredImages(images, 0)) == ()


def test_all_presets_heal_but_that_of_the_paper():
    healing = {name: Run.of(DefendConfig(preset=name)).preset.heal is not None for name in PRESETS}
    assert healing == {"fast": True, "default": True, "thorough": True, "agent": True, "paper": False}
