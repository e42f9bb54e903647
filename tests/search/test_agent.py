from dataclasses import replace

import pytest
import torch

from onp.engine.evaluator import Evaluator
from onp.errors import InputError
from onp.search.agent import PAPER, AgentConfig, TrainResult, build_policies, train
from onp.search.baselines import greedy, random_search
from onp.search.env import PruneEnv
from onp.search.neuron_graph import build_graph
from onp.search.ranking import prefix_masks

BUDGET = 120


def env_of(b, **options) -> PruneEnv:
    return PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), (1.0,), **options)


def run(b, known, config: AgentConfig, **options) -> tuple[TrainResult, PruneEnv]:
    blocks = len(b.victim.layers) if config.per_layer else config.blocks
    env = env_of(b, blocks=blocks, **options)
    policies = build_policies(build_graph(b.victim, config.relations), known, env, config)
    return train(env, policies, known, config), env


def test_the_agent_removes_the_backdoor_and_beats_random_search(backdoored, known):
    result, env = run(backdoored, known, AgentConfig(max_evaluations=BUDGET))
    assert float(result.outcome.asr) < 0.1 < 0.9 < float(env.evaluate(torch.ones_like(env.keep)[None]).asr)
    assert bool(result.outcome.acceptable)
    assert torch.equal(env.keep, result.keep) and 0 < int((~result.keep).sum()) < 25
    for seed in range(3):
        other = env_of(backdoored)
        random_search.search(other, None, BUDGET, seed)
        assert other.evaluations == BUDGET
        assert float(result.outcome.phi) > float(other.outcome.phi)


def test_without_first_order_help_the_agent_still_learns(backdoored, known):
    result, env = run(backdoored, known, AgentConfig(max_evaluations=300, prefixes=0, screening=1, first_order=False))
    start = env.evaluate(torch.ones_like(env.keep)[None])
    assert float(result.outcome.phi) > float(start.phi) + 0.1
    assert any(update.clip_fraction > 0 for update in result.history)


@pytest.mark.parametrize("config", [AgentConfig(), PAPER, AgentConfig(relations=(), flips=0.0), AgentConfig(flips=0.5)])
def test_the_budget_is_never_exceeded_and_the_seed_decides_the_mask(backdoored, known, config):
    for budget in (1, 7, 60):
        limited = replace(config, max_evaluations=budget, seed=3)
        first, env = run(backdoored, known, limited)
        again, _ = run(backdoored, known, limited)
        assert first.evaluations == env.evaluations <= budget
        assert torch.equal(first.keep, again.keep) and first.history == again.history
    assert first.evaluations > 20


def test_the_potential_of_the_committed_mask_never_falls(backdoored, known):
    result, _ = run(backdoored, known, AgentConfig(max_evaluations=BUDGET, seed=1))
    phis = [update.phi for update in result.history]
    assert phis == sorted(phis) and len(phis) > 3
    assert float(result.outcome.phi) == pytest.approx(phis[-1])


def test_nothing_is_pruned_where_nothing_can_be_gained(backdoored, known):
    """Triggered images that are the clean ones: no mask can lower their success without losing accuracy."""
    b = backdoored
    harmless = [replace(b.score_triggered[0], images=b.score.images)]
    env = PruneEnv(b.victim, Evaluator(b.victim, b.score, harmless), (1.0,))
    config = AgentConfig(max_evaluations=60)
    result = train(env, build_policies(build_graph(b.victim), known, env, config), known, config)
    assert int((~result.keep).sum()) <= 2 and float(result.outcome.drop) <= 0.01


def test_flips_come_last_and_only_improve(backdoored, known):
    config = AgentConfig(max_evaluations=200, seed=2, flips=0.4)
    without, _ = run(backdoored, known, replace(config, max_evaluations=170, flips=0.0))
    result, _ = run(backdoored, known, config)
    stages = [update.stage for update in result.history]
    first = stages.index("flips")
    assert set(stages[first:]) == {"flips"} and "pass 1" in stages[:first]
    assert result.history[-1].phi >= result.history[first - 1].phi
    assert not any(update.stage == "flips" for update in without.history)


def test_flips_learn_from_their_gains(backdoored, known):
    """A policy that starts without a hint comes to prefer the kind of unit whose pruning pays."""
    env = env_of(backdoored)
    config = AgentConfig(max_evaluations=400, prefixes=0, first_order=False, patience=30, seed=1)
    (policy,) = build_policies(build_graph(backdoored.victim), known, env, config)
    keep = torch.ones_like(env.keep)
    summary = env.summary(0.0)
    before = policy(keep, summary)[0].detach()
    result = train(env, (policy,), known, config)
    after = policy(keep, summary)[0].detach()
    gone = ~result.keep
    assert float(result.outcome.phi) > result.history[0].phi
    assert (after - before)[gone].mean() > (after - before)[~gone].mean()


def test_several_agents_cannot_share_single_flips(backdoored, known):
    env = env_of(backdoored, blocks=len(backdoored.victim.layers))
    config = replace(PAPER, flips=0.5)
    with pytest.raises(InputError, match="one agent for all layers"):
        train(env, build_policies(build_graph(backdoored.victim), known, env, config), known, config)


def test_one_agent_per_layer_in_the_paper_preset(backdoored, known):
    env = env_of(backdoored, blocks=len(backdoored.victim.layers))
    policies = build_policies(build_graph(backdoored.victim, PAPER.relations), known, env, PAPER)
    assert len(policies) == len(backdoored.victim.layers)
    assert policies[0].static.shape[1] == len(PAPER.features) and not policies[0].hint.any()


def test_progress_reports_every_update(backdoored, known):
    seen = []
    config = AgentConfig(max_evaluations=50)
    env = env_of(backdoored)
    policies = build_policies(build_graph(backdoored.victim), known, env, config)
    result = train(env, policies, known, config, seen.append)
    assert tuple(seen) == result.history and seen[-1].evaluations == result.evaluations


def test_first_order_prefixes_prune_the_highest_scores():
    score = torch.randn(200, generator=torch.Generator().manual_seed(0))
    masks = prefix_masks(score, 10)
    order = score.argsort(descending=True)
    sizes = (~masks).sum(1).tolist()
    assert sizes[0] == 1 and sizes == sorted(set(sizes)) and sizes[-1] <= 60
    for mask, size in zip(masks, sizes, strict=True):
        assert set((~mask).nonzero()[:, 0].tolist()) == set(order[:size].tolist())
    assert prefix_masks(-score.abs(), 10).shape == (0, 200)


@pytest.mark.parametrize("search", [greedy.search, random_search.search])
def test_peers_keep_to_the_budget_and_the_accuracy(backdoored, known, search):
    for budget in (1, 2, 50):
        env = env_of(backdoored)
        keep = search(env, known.taylor, budget, 0)
        assert env.evaluations <= budget
        assert torch.equal(keep, env.keep) and bool(env.outcome.acceptable)
    assert float(env.outcome.phi) > float(env.evaluate(torch.ones_like(env.keep)[None]).phi)


def test_senseless_budgets_are_refused(backdoored, known):
    env = env_of(backdoored)
    with pytest.raises(InputError, match="at least 1 evaluation"):
        train(env, (), known, AgentConfig(max_evaluations=0))
