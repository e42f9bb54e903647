import pytest
import torch

from onp.engine.evaluator import Evaluator
from onp.search.baselines import greedy, random_search
from onp.search.env import PruneEnv


@pytest.mark.parametrize("search", [greedy.search, random_search.search])
def test_searches_keep_to_the_budget_and_the_accuracy(backdoored, features, search):
    b = backdoored
    for budget in (1, 2, 50):
        env = PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), (1.0,))
        keep = search(env, features.taylor, budget, 0)
        assert env.evaluations <= budget
        assert torch.equal(keep, env.keep) and bool(env.outcome.acceptable)
    assert float(env.outcome.phi) > float(env.evaluate(torch.ones_like(env.keep)[None]).phi)
