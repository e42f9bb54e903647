"""Target classes: when a second pass is made, with what, and which classes are repaired."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from onp.data.images import joined, split
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, NORM, clean_images, demo
from onp.detect.anomaly import BN_SHIFT, LATENT, PRIOR_SHIFT, DetectionScores
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import SECOND_PASS_STEPS, DetectConfig, DetectRun, InversionConfig
from onp.detect.scan import scan, scan_steps
from onp.detect.targets import Detection, ambiguous, detect_targets
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import load_victim
from onp.numerics import derive_seed

CONFIG = DetectConfig(threshold=4.0)
WANET_REPAIR = {
    "features.8": [4, 47],
    "features.11": [3, 10, 43, 51],
    "features.15": [6, 20, 43, 63, 80, 88, 102, 116, 119],
    "features.18": [16, 29, 40, 86, 106],
    "features.22": [2, 4, 6, 14, 17, 22, 28, 30, 34, 49, 52, 61, 63, 74, 75, 95, 98, 125],
    "features.25": [3, 15, 19, 20, 56, 57, 61, 65, 91],
}


def scored(*score):
    """Scores by class, whatever they come from."""
    return DetectionScores({}, {}, score)


@pytest.mark.parametrize(
    ("score", "unclear"),
    [
        ((0.1, 6.2, 6.1, 4.1), True),
        ((0.2, 8.4, 0.3, 5.5), True),
        ((9.0, 5.2, 1.0, 0.0), False),  # far behind
        ((3.9, 3.9, 0.0, 0.0), False),  # none reaches the threshold
        ((6.0, 3.9, 0.0, 0.0), False),  # one does
        ((4.9, 0.4, 0.0, 0.0), True),  # one barely does
    ],
)
def test_ambiguous_are_two_classes_alike_or_one_that_barely_reaches_the_threshold(score, unclear):
    assert ambiguous(scored(*score), 4.0) is unclear


def test_a_class_that_barely_reaches_the_threshold_is_settled_by_detectors_that_steps_do_not_change():
    cheap, none = (-0.55, *(0.1 * k for k in range(9))), (0.0,) * 10
    for detector, unclear in (("bn_shift", False), ("pgd", True)):
        scores = DetectionScores.of({"latent": cheap, "bn_shift": none, "pgd": none} | {detector: cheap})
        assert 4.0 < scores.score[0] < 5.0
        assert ambiguous(scores, 4.0) is unclear


def test_targets_are_the_highest_score_and_what_reaches_the_threshold_in_both_passes():
    def targets(first, second=None):
        return Detection(scored(*first), None if second is None else scored(*second), CONFIG).targets

    assert targets((9.0, 5.2, 0.0)) == (0,)
    assert targets((6.2, 6.1, 0.0), (1.0, 8.0, 0.0)) == (1,), "the first pass was wrong"
    assert targets((0.0, 6.1, 6.0), (9.0, 4.6, 5.0)) == (0, 2, 1), "the highest need not have reached it"
    assert targets((6.1, 6.0, 0.0), (7.0, 5.0, 6.5)) == (0, 1), "the others must"
    assert targets((4.1, 4.0, 0.0), (3.0, 1.0, 0.0)) == ()


def test_the_last_pass_decides_scores_settings_and_verdict():
    once, twice = Detection(scored(9.0, 1.0), None, CONFIG), Detection(scored(4.1, 1.0), scored(3.0, 1.0), CONFIG)
    assert once.backdoored and once.scores is once.first and once.deciding_config == CONFIG
    assert not twice.backdoored and twice.scores is twice.second and twice.deciding_config == CONFIG.second_pass()
    assert CONFIG.second_pass().scan.steps == round(SECOND_PASS_STEPS * CONFIG.scan.steps)
    assert CONFIG.second_pass().refine.steps == round(SECOND_PASS_STEPS * CONFIG.refine.steps)


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


def test_a_clear_first_pass_is_the_only_one(network, stages):
    stage, opened = stages
    highest = network.first.predicted_target
    others = max(score for k, score in enumerate(network.first.score) if k != highest)
    config = replace(network.config, threshold=max(others + 1e-6, network.first.score[highest] - 2.0))
    assert network.first.score[highest] >= config.threshold + 1.0, "the tiny backdoor is clear"
    found = detect_targets(network.victim, network.clean, network.bn, DetectRun(config, seed=7), stage)
    assert found.second is None and found.targets == (highest,) and found.first.log_costs == network.first.log_costs
    assert [(each.total, each.done) for each in opened] == [(scan_steps(config),) * 2]


def test_an_ambiguous_first_pass_is_repeated_with_more_steps_and_other_seeds(network, stages):
    stage, opened = stages
    # Without the detectors that steps do not change the highest score barely reaches this threshold.
    config = replace(network.config, threshold=network.first.score[network.first.predicted_target] - 1e-6)
    found = detect_targets(network.victim, network.clean, network.bn, DetectRun(config, seed=7), stage)
    again = scan(network.victim, network.clean, network.bn, DetectRun(config.second_pass(), seed=derive_seed(7, "second_pass")))
    assert found.first.log_costs == network.first.log_costs and found.second.log_costs == again.log_costs
    first, second = opened
    assert first.total == first.done and second.total == second.done > 2 * first.total and first.name != second.name


def test_batch_norm_statistics_have_no_say_about_a_pruned_network(network):
    victim = prune(network.victim, Mask.from_pruned(Mask.of(network.victim).layers, {network.victim.layers[0].name: [3, 5]}))
    bn = bn_statistics(victim, joined(network.clean.build, network.clean.score))
    assert bn.left_out and bn_match(victim, bn) is None and not bn.of_units(victim).any()
    assert not network.bn.left_out and bn_match(network.victim, network.bn) is not None
    found = detect_targets(victim, network.clean, bn, DetectRun(network.config, seed=7))
    assert found.pruned == 2 and found.scores.shortcuts_only
    assert set(network.first.log_costs) - set(found.scores.log_costs) == {BN_SHIFT, PRIOR_SHIFT}
    assert LATENT in found.scores.log_costs and not network.first.shortcuts_only


def test_a_repaired_network_is_not_convicted_by_what_its_repair_changed():
    """An embedded network, pruned by the mask of a repair with the preset fast that left its trigger an ASR of 0.7 %."""
    files = demo("wanet")
    victim = load_victim(files.model, ARCH, Normalisation.parse(NORM), (1, 28, 28))
    repaired = prune(victim, Mask.from_pruned(Mask.of(victim).layers, WANET_REPAIR))
    clean = split(clean_images(), 0)
    run = DetectRun(DetectConfig(scan=InversionConfig(steps=4, images=4)))
    first = scan(repaired, clean, bn_statistics(repaired, joined(clean.build, clean.score)), run)
    assert first.score[0] < run.config.threshold - 1.0, "with batch-norm statistics it is above the threshold"
    assert first.anomaly_index[LATENT][0] > 2.0, "the target is as near in feature space as before"
