"""Repairs of one class after another, on tiny networks with real backdoors and detections made by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.made_verdict import made_pass, made_verdict
from helpers.small_backdoor import FIT

from onp.data.images import joined
from onp.defend import run_pipeline
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.repair_loop import after_loss, held_out_triggers, repair_targets, target_classes
from onp.defend.run import Run
from onp.detect.bn_statistics import bn_statistics
from onp.detect.scan import scan
from onp.detect.targets import Detection, Pass, ranking
from onp.engine.metrics import attack_success, predictions
from onp.errors import InputError
from onp.model.prune import prune
from onp.numerics import derive_seed
from onp.resume import Store


@pytest.fixture(scope="module")
def case(small, backdoored):
    """The tiny victim, whose class 0 is the target of a backdoor that nobody knows."""
    return replace(small.case(backdoored.victim), known_trigger=None)


@pytest.fixture(scope="module")
def bn(case):
    return bn_statistics(case.victim, case.searched)


@pytest.fixture(scope="module")
def scores(case, bn, small):
    """What detection measures."""
    return scan(case.victim, case.clean, bn, Run(DefendConfig(), small.PRESET).detecting())


VERDICT = made_verdict()


def found(scores, *passes, verdict=VERDICT):
    """A detection with these probabilities by class, in each pass, and what was measured."""
    return Detection(tuple(made_pass(*each, scores=scores) for each in passes), verdict)


def a_run(small, share=0.05, **changes):
    return replace(Run(DefendConfig(max_acc_drop=share, quiet=True), small.PRESET.with_max_acc_drop(share)), **changes)


def attack_left(backdoored, victim):
    (triggered,) = backdoored.score_triggered
    return attack_success(triggered.labels, predictions(victim.model, triggered.images), 0).value


@pytest.fixture(scope="module")
def clear(case, bn, scores, small):
    """A clear detection of class 0 and its repair."""
    detection = found(scores, (0.98, 0.3, 0.0, 0.0))
    return detection, repair_targets(case, detection, bn, a_run(small))


def test_a_clear_detection_is_one_repair(clear, backdoored, case):
    _, repairs = clear
    assert repairs.targets == (0,) and repairs.passes_after == () and repairs.works
    assert torch.equal(repairs.mask.keep, repairs.repairs[0].search.mask.keep)
    assert attack_left(backdoored, prune(case.victim, repairs.mask)) < 0.3 < 0.8 < attack_left(backdoored, case.victim)


def test_no_target_is_no_repair(case, bn, scores, small):
    nothing = found(scores, (0.1, 0.02, 0.0, 0.0))
    assert repair_targets(case, nothing, bn, a_run(small)) is None and target_classes(case, nothing, None) == ()
    assert held_out_triggers(case, nothing, None, bn, a_run(small)) == []


def test_the_budget_of_later_repairs_is_what_is_left(case, small, clear):
    run = a_run(small)
    whole = run.preset.search.objective
    assert after_loss(case, case, run) is run
    keep = torch.ones(case.victim.units, dtype=torch.bool)
    keep[:16] = False  # the whole first layer
    ruined = replace(case, victim=prune(case.victim, replace(clear[1].mask, keep=keep)))
    left = after_loss(case, ruined, run).preset.search.objective
    assert left.acc_budget == 0.0 < whole.acc_budget and replace(left, acc_budget=whole.acc_budget) == whole
    # A repair that costs nothing leaves everything.
    same = replace(case, victim=prune(case.victim, replace(clear[1].mask, keep=torch.ones_like(keep))))
    assert after_loss(case, same, run).preset.search.objective == whole


@pytest.fixture(scope="module")
def two(case, bn, scores, small):
    """Several targets, with a verdict by which every class is one on any network."""
    anything = replace(made_verdict(bias=9.0), backdoor_from=0.0)
    detection = found(scores, (0.9, 0.5, 0.85, 0.8), (0.9, 0.5, 0.85, 0.8), verdict=anything)
    assert detection.targets == (0, 2, 3, 1)
    run = a_run(small, 0.2)
    run = replace(run, preset=replace(run.preset, detect=replace(run.preset.detect, scan=replace(FIT, steps=6))))
    return detection, run, repair_targets(case, detection, bn, run)


def test_a_class_that_is_still_a_target_is_repaired_on_the_repaired_network(case, two):
    detection, run, repairs = two
    assert repairs.targets[0] == 0
    first = repairs.repairs[0].search
    assert first.works and repairs.passes_after, "the first repair left classes open"
    repaired = replace(case, victim=prune(case.victim, first.mask))
    again = derive_seed(derive_seed(run.seed, "target", 1), "pass")
    assert again == run.seed + 10_100
    settings = replace(run.detecting(), seed=again)
    bn = bn_statistics(repaired.victim, case.searched)
    expected = Pass.of(repaired.victim, case.clean, bn, settings, detection.verdict)
    assert repairs.passes_after[0].scores.log_costs == expected.scores.log_costs
    left = [k for k in ranking(expected.probabilities) if k != 0]
    assert repairs.targets[1] == left[0], "the most probable one is next"
    together = first.mask.keep.clone()
    for repair in repairs.repairs[1:]:
        together &= repair.search.mask.keep
    assert torch.equal(repairs.mask.keep, together)


def test_every_target_has_held_out_triggers_of_its_own(case, bn, clear, small):
    detection, repairs = clear
    run = a_run(small)
    (bank,) = held_out_triggers(case, detection, repairs, bn, run)
    assert bank.target == 0
    searched = repairs.repairs[0].search.bank
    assert {each.family for each in bank.surrogates} <= {each.family for each in searched.surrogates}
    images = case.clean.holdout
    for ours, theirs in zip(bank.batches(case.victim, images), searched.batches(case.victim, images), strict=False):
        assert not torch.equal(ours.images, theirs.images), "no search has seen them"


def test_what_one_class_leaves_unrepaired_is_no_repair(case, clear):
    """A second class whose triggers no mask stops."""
    _, repairs = clear
    search = repairs.repairs[0].search
    hopeless = replace(search, asr_before=float(search.outcome.asr))
    both = replace(repairs, repairs=(*repairs.repairs, replace(repairs.repairs[0], target=2, search=hopeless)))
    assert not hopeless.works and not both.works and both.targets == (0, 2)


def test_a_network_that_cannot_be_repaired_is_left_as_it_is(case, small, plain_verdict):
    """Without any accuracy to give, no mask is acceptable that loses an image."""
    run = a_run(small, 0.0, preset=small.PRESET.with_max_acc_drop(0.0))
    impatient = replace(run.preset.search, method=replace(run.preset.search.method, max_evaluations=2))
    outcome = run_pipeline(case, replace(run, preset=replace(run.preset, search=impatient, heal=None)))
    report = outcome.report
    assert report.decision == "not-repairable" and bool(outcome.mask.keep.all()) and report.pruned_count == 0
    assert outcome.victim is case.victim and report.before is report.after
    assert report.before.asr_surrogate, "its held-out triggers are measured all the same"


def test_a_scan_measures_the_triggers_of_what_it_finds_and_prunes_nothing(case, small, plain_verdict):
    run = Run(DefendConfig(repair=False, quiet=True), small.PRESET)
    outcome = run_pipeline(case, run)
    report = outcome.report
    assert report.decision == "backdoor-evidence" and report.task == "scan" and report.target_classes == (0,)
    assert report.budget.evaluations == 0 and report.pruned_count == 0 and outcome.victim is case.victim
    assert max(share.value for share in report.before.asr_surrogate.values()) > 0.8
    assert "searching for the mask" not in report.timings and report.headline.endswith("nothing was changed.")


class Filled(Store):
    """A store that lets nothing be computed or kept."""

    def write(self, name, content):
        raise AssertionError(f"{name} is computed again")

    def append(self, name, line):
        assert name == "seconds.jsonl", f"{name} is computed again"


def test_a_wrong_first_target_is_put_right_and_a_resumed_run_agrees(case, bn, scores, small, backdoored, tmp_path):
    detection = found(scores, (0.6, 0.0, 0.7, 0.0), (0.99, 0.0, 0.1, 0.0))
    assert detection.passes[0].probabilities.predicted_target == 2 and detection.targets == (0,)
    done = []
    for kind in (Store, Filled):
        run = a_run(small, store=kind(tmp_path))
        run.begin(case)
        repairs = repair_targets(case, detection, bn, run)
        banks = held_out_triggers(case, detection, repairs, bn, run)
        done.append((repairs, banks))
    (repairs, (bank,)), (again, (same,)) = done
    assert repairs.works and torch.equal(repairs.mask.keep, again.mask.keep)
    for one, other in zip(bank.surrogates, same.surrogates, strict=True):
        assert one.cost == other.cost and one.success == other.success
    assert attack_left(backdoored, prune(case.victim, repairs.mask)) < 0.3


def test_a_run_on_another_case_is_not_continued(case, small, tmp_path):
    a_run(small, store=Store(tmp_path)).begin(case)
    a_run(small, store=Store(tmp_path)).begin(case)
    clean = replace(case.clean, holdout=joined(case.clean.holdout, case.clean.holdout))
    with pytest.raises(InputError, match="started with another data"):
        a_run(small, store=Store(tmp_path)).begin(Case(case.victim, clean))
    with pytest.raises(InputError, match="another max-acc-drop"):
        a_run(small, 0.1, store=Store(tmp_path)).begin(case)
