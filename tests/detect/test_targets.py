"""Target classes: when a second pass is made, with what, and which classes are repaired."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.made_verdict import made_pass, made_verdict, probabilities

from onp.data.images import joined, split
from onp.detect import scan as scan_module
from onp.detect import targets
from onp.detect.anomaly import BN_SHIFT, LATENT, PRIOR_SHIFT
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectRun
from onp.detect.scan import scan, scan_steps
from onp.detect.targets import Detection, Pass, detect_targets, open_question
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.numerics import derive_seed

VERDICT = made_verdict()


@pytest.mark.parametrize(
    ("per_class", "unclear"),
    [
        ((0.05, 0.1, 0.0, 0.0), False),  # no backdoor
        ((0.0, 0.3, 0.0, 0.0), True),  # perhaps one
        ((0.95, 0.5, 0.0, 0.0), False),  # one target
        ((0.95, 0.85, 0.0, 0.0), True),  # perhaps two
        ((0.6, 0.6, 0.0, 0.0), True),  # a backdoor towards the one or the other
    ],
)
def test_a_pass_leaves_open_whether_there_is_a_backdoor_or_towards_which_classes(per_class, unclear):
    assert open_question(probabilities(*per_class), VERDICT) is unclear


def test_targets_are_the_most_probable_class_and_what_both_passes_find():
    def targets(*passes):
        return Detection(tuple(made_pass(*each) for each in passes), VERDICT).targets

    assert targets((0.97, 0.5, 0.0)) == (0,)
    assert targets((0.6, 0.55, 0.0), (0.05, 0.99, 0.0)) == (1,), "the second pass tells them apart"
    assert targets((0.98, 0.9, 0.95), (0.97, 0.9, 0.7)) == (0, 1), "both passes found class 1, one class 2"
    assert targets((0.7, 0.0, 0.0), (0.1, 0.0, 0.0)) == ()


def test_both_passes_decide_and_the_last_one_measured_the_scores():
    first, second = made_pass(0.7, 0.1, patch=3.0, warp=1.0), made_pass(0.95, 0.1, patch=5.0, warp=0.0)
    once, twice = Detection((first,), VERDICT), Detection((first, second), VERDICT)
    assert once.probabilities is first.probabilities and not once.backdoored
    assert twice.scores is second.scores and twice.backdoored and twice.predicted_target == 0
    assert twice.probabilities.evidence[0] == {"patch": 4.0, "warp": 0.5}


@pytest.fixture(scope="module")
def network(small, backdoored):
    clean = split(small.clean_images(), 0)
    config = small.PRESET.detect
    bn = bn_statistics(backdoored.victim, joined(clean.build, clean.score))
    first = scan(backdoored.victim, clean, bn, DetectRun(config, seed=7))
    return SimpleNamespace(victim=backdoored.victim, clean=clean, bn=bn, config=config, first=first)


@pytest.fixture
def stages():
    """The name, steps and counted steps of every stage."""
    opened = []

    @contextmanager
    def stage(name, total):
        count = SimpleNamespace(name=name, total=total, done=0)
        opened.append(count)

        def advance(steps=1, note="", known=False):
            count.done += steps

        yield SimpleNamespace(advance=advance)

    return stage, opened


@pytest.fixture
def verdict(monkeypatch):
    """Has detection decide with the thresholds that it is called with."""

    def use(backdoor_from, none_below):
        other = replace(VERDICT, backdoor_from=backdoor_from, none_below=none_below)
        monkeypatch.setattr(targets, "learned_verdict", lambda: other)

    return use


def test_a_clear_first_pass_is_the_only_one(network, stages, verdict):
    stage, opened = stages
    verdict(0.5, 0.0)
    found = detect_targets(network.victim, network.clean, network.bn, DetectRun(network.config, seed=7), stage)
    assert found.targets == (0,) and len(found.passes) == 1 and found.scores.log_costs == network.first.log_costs
    assert found.probabilities.backdoor > 0.8 and not found.pruned
    assert [(each.total, each.done) for each in opened] == [(scan_steps(network.config),) * 2]


def test_what_is_open_is_asked_again_with_other_seeds_and_exchanged_images(network, stages, verdict):
    stage, opened = stages
    verdict(1.0, 0.0)
    run = DetectRun(network.config, seed=7)
    found = detect_targets(network.victim, network.clean, network.bn, run, stage)
    exchanged = replace(network.clean, build=network.clean.score, score=network.clean.build)
    again = scan(network.victim, exchanged, network.bn, replace(run, seed=derive_seed(7, "pass", 1)))
    first, second = (each.scores.log_costs for each in found.passes)
    assert first == network.first.log_costs and second == again.log_costs != first
    steps = scan_steps(network.config)
    assert [(each.total, each.done) for each in opened] == [(steps, steps)] * 2 and opened[0].name != opened[1].name


def test_more_passes_where_they_are_allowed(network, stages, verdict):
    stage, opened = stages
    verdict(1.0, 0.0)
    config = replace(network.config, passes=3)
    found = detect_targets(network.victim, network.clean, network.bn, DetectRun(config, seed=7), stage)
    again = scan(network.victim, network.clean, network.bn, DetectRun(config, seed=derive_seed(7, "pass", 2)))
    assert found.passes[2].scores.log_costs == again.log_costs
    assert [each.name for each in opened] == [f"detecting the target class{text}" for text in ("", ", pass 2", ", pass 3")]
    log_odds = [each.probabilities.log_odds for each in found.passes]
    assert found.probabilities.log_odds == pytest.approx([sum(values) / 3 for values in zip(*log_odds, strict=True)])


def test_triggers_are_inverted_for_a_probable_target_that_was_left_out(network, monkeypatch):
    monkeypatch.setattr(scan_module, "classes_to_invert", lambda scores, classes: (1, 2, 3))
    run = DetectRun(network.config, seed=7)
    left_out = scan(network.victim, network.clean, network.bn, run)
    assert math.isnan(left_out.log_costs["patch"][0]) and not math.isnan(left_out.log_costs[LATENT][0])
    found = Pass.of(network.victim, network.clean, network.bn, run, VERDICT)
    assert found.probabilities.predicted_target == 0 and not math.isnan(found.scores.log_costs["patch"][0])
    assert found.scores.log_costs["patch"][1:] == left_out.log_costs["patch"][1:]
    assert found.scores.log_costs[LATENT] == left_out.log_costs[LATENT]
    clean = replace(VERDICT, none_below=1.0, backdoor_from=1.0)
    assert math.isnan(Pass.of(network.victim, network.clean, network.bn, run, clean).scores.log_costs["patch"][0])


def test_batch_norm_statistics_have_no_say_about_a_pruned_network(network):
    victim = prune(network.victim, Mask.from_pruned(Mask.of(network.victim).layers, {network.victim.layers[0].name: [3, 5]}))
    bn = bn_statistics(victim, joined(network.clean.build, network.clean.score))
    assert bn.left_out and bn_match(victim, bn) is None and not bn.of_units(victim).any()
    assert not network.bn.left_out and bn_match(network.victim, network.bn) is not None
    found = detect_targets(victim, network.clean, bn, DetectRun(network.config, seed=7))
    assert found.pruned == 2
    assert set(network.first.log_costs) - set(found.scores.log_costs) == {BN_SHIFT, PRIOR_SHIFT}
    assert LATENT in found.scores.log_costs
