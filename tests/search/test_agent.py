from dataclasses import replace

import pytest
import torch

from onp.engine.evaluator import Evaluator
from onp.errors import InputError
from onp.search.agent import PAPER, AgentConfig, PolicyConfig, build_policies, train
from onp.search.baselines import random_search
from onp.search.course import FoundMask
from onp.search.env import PruneEnv
from onp.search.neuron_graph import build_graph
from onp.search.problem import SearchProblem

BUDGET = 120


@pytest.fixture
def problem_of(backdoored, features, saliency):
    """A fresh problem of the tiny victim whose policies will have that configuration."""

    def make(config: AgentConfig = AgentConfig(), triggered=backdoored.score_triggered) -> SearchProblem:
        b = backdoored
        env = PruneEnv(b.victim, Evaluator(b.victim, b.score, triggered), (1.0,))
        return SearchProblem(env, features, saliency, build_graph(b.victim, config.policy.relations))

    return make


@pytest.fixture
def run(problem_of):
    """A whole search of that configuration."""

    def search(config: AgentConfig) -> tuple[FoundMask, PruneEnv]:
        problem = problem_of(config)
        return train(problem, build_policies(problem, config), config), problem.env

    return search


def test_the_agent_removes_the_backdoor_and_beats_random_search(problem_of, run):
    result, env = run(AgentConfig(max_evaluations=BUDGET))
    assert float(result.outcome.asr) < 0.1 < 0.9 < float(env.evaluate(torch.ones_like(env.keep)[None]).asr)
    assert bool(result.outcome.acceptable)
    assert torch.equal(env.keep, result.keep) and 0 < int((~result.keep).sum()) < 25
    for seed in range(3):
        other = problem_of().env
        random_search.search(other, None, BUDGET, seed)
        assert other.evaluations == BUDGET
        assert float(result.outcome.phi) > float(other.outcome.phi)


def test_without_taylor_saliency_the_agent_still_learns(run):
    blind = AgentConfig(max_evaluations=300, warm_start_masks=0, candidates=1, policy=PolicyConfig(taylor_prior=False))
    result, env = run(blind)
    start = env.evaluate(torch.ones_like(env.keep)[None])
    assert float(result.outcome.phi) > float(start.phi) + 0.1
    assert any(update.clip_fraction > 0 for update in result.history)


WITHOUT_EDGES = AgentConfig(policy=PolicyConfig(relations=()), single_toggles=0.0)


@pytest.mark.parametrize("config", [AgentConfig(), PAPER, WITHOUT_EDGES, AgentConfig(single_toggles=0.5)])
def test_the_budget_is_never_exceeded_and_the_seed_decides_the_mask(run, config):
    for budget in (1, 7, 60):
        limited = replace(config, max_evaluations=budget, seed=3)
        first, env = run(limited)
        again, _ = run(limited)
        assert first.evaluations == env.evaluations <= budget
        assert torch.equal(first.keep, again.keep) and first.history == again.history
    assert first.evaluations > 20


def test_the_potential_of_the_committed_mask_never_falls(run):
    result, _ = run(AgentConfig(max_evaluations=BUDGET, seed=1))
    phis = [update.phi for update in result.history]
    assert phis == sorted(phis) and len(phis) > 3
    assert float(result.outcome.phi) == pytest.approx(phis[-1])


def test_nothing_is_pruned_where_nothing_can_be_gained(backdoored, problem_of):
    """Triggered images that are the clean ones: no mask can lower their success without losing accuracy."""
    harmless = [replace(backdoored.score_triggered[0], images=backdoored.score.images)]
    config = AgentConfig(max_evaluations=60)
    problem = problem_of(config, harmless)
    result = train(problem, build_policies(problem, config), config)
    assert int((~result.keep).sum()) <= 2 and float(result.outcome.expected_acc_loss) <= 0.01


def test_single_toggles_come_last_and_only_improve(run):
    config = AgentConfig(max_evaluations=200, seed=2, single_toggles=0.4)
    without, _ = run(replace(config, max_evaluations=170, single_toggles=0.0))
    result, _ = run(config)
    stages = [update.stage for update in result.history]
    first = stages.index("single toggles")
    assert set(stages[first:]) == {"single toggles"} and "pass 1" in stages[:first]
    assert result.history[-1].phi >= result.history[first - 1].phi
    assert not any(update.stage == "single toggles" for update in without.history)


def test_the_policy_learns_from_the_gains_of_single_toggles(problem_of):
    """Without a prior it comes to prefer the kind of unit whose pruning gains."""
    config = AgentConfig(max_evaluations=400, warm_start_masks=0, policy=PolicyConfig(taylor_prior=False), patience=30, seed=1)
    problem = problem_of(config)
    (policy,) = build_policies(problem, config)
    keep, summary = torch.ones_like(problem.env.keep), problem.env.summary(0.0)
    before = policy(keep, summary)[0].detach()
    result = train(problem, (policy,), config)
    after = policy(keep, summary)[0].detach()
    gone = ~result.keep
    assert float(result.outcome.phi) > result.history[0].phi
    assert (after - before)[gone].mean() > (after - before)[~gone].mean()


def test_several_agents_cannot_share_single_toggles(problem_of):
    config = replace(PAPER, single_toggles=0.5)
    problem = problem_of(config)
    with pytest.raises(InputError, match="one agent for all layers"):
        train(problem, build_policies(problem, config), config)


def test_one_agent_per_layer_in_the_paper_preset(backdoored, problem_of):
    policies = build_policies(problem_of(PAPER), PAPER)
    assert len(policies) == len(backdoored.victim.layers)
    assert policies[0].static.shape[1] == len(PAPER.policy.features) and not policies[0].prior_score.any()


def test_progress_reports_every_update(problem_of):
    seen = []
    config = AgentConfig(max_evaluations=50)
    problem = problem_of(config)
    result = train(problem, build_policies(problem, config), config, seen.append)
    assert tuple(seen) == result.history and seen[-1].evaluations == result.evaluations


def test_senseless_budgets_are_refused(problem_of):
    with pytest.raises(InputError, match="at least 1 evaluation"):
        train(problem_of(), (), AgentConfig(max_evaluations=0))
