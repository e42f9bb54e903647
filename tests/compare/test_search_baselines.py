"""The search baselines: the pipeline of `onp.defend` with another search."""

import pytest
import torch

from onp.compare.defences import DefenceConfig, SearchBaseline, defence
from onp.data.images import joined, split
from onp.defend.presets import PRESETS
from onp.detect.bank import TargetClass, invert_triggers
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectRun
from onp.detect.targets import detect_targets
from onp.engine.evaluator import Evaluator
from onp.model.prune import prune
from onp.search.baselines import cma_es
from onp.search.env import PruneEnv
from onp.search.setup import SearchRun, build_env


def test_cma_es_finds_a_repair_within_its_evaluations(backdoored, features):
    pytest.importorskip("cmaes")
    for budget in (1, 9, 60):
        env = PruneEnv(backdoored.victim, Evaluator(backdoored.victim, backdoored.score, backdoored.score_triggered), (1.0,))
        start = float(env.outcome.phi)
        keep = cma_es.search(env, features.taylor, budget, 0)
        assert env.evaluations <= budget and torch.equal(env.keep, keep) and bool(env.outcome.acceptable)
    assert float(env.outcome.phi) > start + 0.5


def test_a_search_baseline_works_from_clean_images_alone(backdoored, pictures, figures, plain_verdict):
    done = defence("taylor", "fast")(backdoored.victim, pictures, DefenceConfig(max_acc_drop=0.05))
    acc, asr = figures(prune(backdoored.victim, done.mask))
    assert acc >= 0.9 and asr <= 0.3 and 1 < done.evaluations <= 150


def test_a_search_baseline_runs_the_detection_that_onp_runs(backdoored, pictures, plain_verdict):
    """Detection, inversion and search problem are those of the pipeline, so their first mask has the same Phi."""
    config, searched = DefenceConfig(max_acc_drop=0.05), []

    def search(env, score, evaluations, seed):
        searched.append(float(env.outcome.phi))
        return env.keep

    SearchBaseline(search, "fast").run(backdoored.victim, pictures, config)
    preset, splits = PRESETS["fast"].with_max_acc_drop(config.max_acc_drop), split(pictures, config.seed)
    bn = bn_statistics(backdoored.victim, joined(splits.build, splits.score))
    detection = detect_targets(backdoored.victim, splits, bn, DetectRun(preset.detect, config.seed))
    target = TargetClass(detection.targets[0], detection.scores, bn_match(backdoored.victim, bn))
    bank = invert_triggers(backdoored.victim, target, splits, DetectRun(preset.detect, config.seed))
    problem = build_env(backdoored.victim, splits, bank, bn, SearchRun(preset.search, config.seed))
    assert searched == [float(problem.env.outcome.phi)]
