"""First-order search: what it finds, within which budget, and in which order it tries units."""

from dataclasses import replace

import pytest
import torch

from onp.engine.evaluator import Evaluator
from onp.errors import InputError
from onp.search.env import PruneEnv
from onp.search.first_order import FirstOrderConfig, search
from onp.search.neuron_graph import build_graph
from onp.search.prior import pick_units, toggling_logits
from onp.search.problem import SearchProblem
from onp.search.single_toggles import Patience


@pytest.fixture
def problem_of(backdoored, features, saliency):
    def make(triggered=backdoored.score_triggered) -> SearchProblem:
        b = backdoored
        env = PruneEnv(b.victim, Evaluator(b.victim, b.score, triggered), (1.0,))
        return SearchProblem(env, features, saliency, build_graph(b.victim, ()))

    return make


def test_it_removes_the_backdoor_within_the_accuracy_budget(problem_of):
    problem = problem_of()
    found = search(problem, FirstOrderConfig(max_evaluations=120))
    assert float(found.outcome.asr) < 0.1 and bool(found.outcome.acceptable)
    assert torch.equal(problem.env.keep, found.keep) and 0 < int((~found.keep).sum()) < 25


@pytest.mark.parametrize("budget", [1, 2, 7, 60])
def test_the_budget_is_never_exceeded_and_the_seed_decides(problem_of, budget):
    config = FirstOrderConfig(seed=3, max_evaluations=budget)
    first, again = search(problem_of(), config), search(problem_of(), config)
    assert first.evaluations <= budget
    assert torch.equal(first.keep, again.keep) and first.history == again.history


def test_the_potential_never_falls_and_every_step_is_reported(problem_of):
    seen = []
    found = search(problem_of(), FirstOrderConfig(max_evaluations=120, seed=1), seen.append)
    assert tuple(seen) == found.history and seen[-1].evaluations == found.evaluations
    phis = [update.phi for update in seen]
    assert phis == sorted(phis) and len(phis) > 2
    assert [update.stage for update in seen] == ["warm start"] + ["single toggles"] * (len(seen) - 1)


def test_nothing_is_pruned_where_nothing_can_be_gained(backdoored, problem_of):
    harmless = [replace(backdoored.score_triggered[0], images=backdoored.score.images)]
    found = search(problem_of(harmless), FirstOrderConfig(max_evaluations=60))
    assert int((~found.keep).sum()) <= 2 and float(found.outcome.expected_acc_loss) <= 0.01


def test_a_budget_of_nothing_is_refused(problem_of):
    with pytest.raises(InputError, match="at least 1 evaluation"):
        search(problem_of(), FirstOrderConfig(max_evaluations=0))


def test_salient_units_come_first_and_pruned_ones_may_come_back():
    score = torch.zeros(100)
    score[:6] = torch.tensor([6.0, 5.0, 4.5, 4.0, 5.5, 1.0])
    keep = torch.ones(100, dtype=torch.bool)
    keep[[0, 50]] = False
    logits = toggling_logits(score, keep)
    assert logits[1] > logits[2] > logits[60], "of kept units the salient one is pruned sooner"
    assert logits[50] > logits[0], "of pruned ones it is brought back later"
    assert logits[50] > logits[60], "a useless removal is undone before a useless unit is removed"


def test_half_of_the_picks_are_the_likeliest_and_none_comes_twice():
    logits, allowed = torch.linspace(-4, 4, 40), torch.ones(40, dtype=torch.bool)
    allowed[39] = False
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        units = pick_units(logits, allowed, 10, generator)
        assert units[:5].tolist() == [38, 37, 36, 35, 34] and len(set(units.tolist())) == 10 and 39 not in units
    assert sorted(pick_units(logits, logits > 3.5, 10, generator).tolist()) == (logits > 3.5).nonzero()[:, 0].tolist()


def test_a_search_that_is_to_get_somewhere_ends_halfway_where_it_does_not(backdoored, problem_of):
    harmless = [replace(backdoored.score_triggered[0], images=backdoored.score.images)]
    patient = Patience(groups=100)
    hopeless = replace(patient, least_removed=0.25)

    def spent(patience, *triggered):
        return search(problem_of(*triggered), FirstOrderConfig(max_evaluations=120, patience=patience)).evaluations

    assert spent(hopeless) == spent(patient), "most of the ASR is gone by then"
    assert 60 <= spent(hopeless, harmless) < 90 < spent(patient, harmless)
