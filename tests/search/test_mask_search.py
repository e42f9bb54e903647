"""The search as a whole: its methods and rounds, banks that grow, and what its result is measured with."""

from dataclasses import replace

import pytest
import torch
from helpers.small_backdoor import clean_images, stamp

from onp.data.images import split
from onp.detect.bank import Surrogate, TriggerBank, weighted_bank
from onp.search.agent import AgentConfig
from onp.search.first_order import FirstOrderConfig
from onp.search.mask_search import REMOVED, search_mask
from onp.search.setup import SearchConfig, SearchRun, build_env

PATCH = Surrogate("patch", 0, 1.0, 1.0, 0.0, None, stamp)
BANK = TriggerBank((PATCH,), (1.0,), 0)
CONFIG = SearchConfig(FirstOrderConfig(max_evaluations=60))


@pytest.fixture
def splits():
    return split(clean_images(), 0)


def with_harmless_trigger(pruned, bank, seed):
    """A bank whose second family leaves images as they are: its weighted ASR is about half of the first bank's."""
    harmless = Surrogate(f"none {seed}", 0, 1.0, 1.0, 0.0, None, torch.clone)
    return weighted_bank((*bank.surrogates, harmless), (1.0,) * (len(bank.surrogates) + 1), 0)


def test_every_asr_of_the_result_is_measured_with_the_last_bank(backdoored, splits):
    """With two rounds the first bank's ASR is no baseline of what the second bank measures."""
    config = SearchConfig(CONFIG.method, rounds=2)
    first = search_mask(backdoored.victim, splits, BANK, None, SearchRun(CONFIG))
    run = SearchRun(config, extend_bank=with_harmless_trigger)
    result = search_mask(backdoored.victim, splits, BANK, None, run)
    assert first.asr_before > 0.9 and len(result.results) == 2 and len(result.bank.surrogates) == 2
    env = build_env(backdoored.victim, splits, result.bank, None, run).env
    assert result.asr_before == pytest.approx(float(env.outcome.asr)) and result.asr_before < 0.7
    assert float(result.outcome.asr) == pytest.approx(float(env.evaluate(result.mask.keep[None]).asr))
    assert result.works == (bool(result.outcome.acceptable) and float(result.outcome.asr) <= (1 - REMOVED) * result.asr_before)
    assert result.evaluations == sum(each.evaluations for each in result.results) <= 60


def test_a_round_whose_repair_left_nothing_is_the_last(backdoored, splits):
    asked = []

    def nothing(pruned, bank, seed):
        asked.append((pruned, bank, seed))

    config = SearchConfig(CONFIG.method, rounds=3)
    result = search_mask(backdoored.victim, splits, BANK, None, SearchRun(config, seed=7, extend_bank=nothing))
    ((pruned, bank, seed),) = asked
    assert len(result.results) == 1 and result.bank is bank is BANK and seed == 8
    gone = [layer for layer in pruned.layers if not result.mask.keep[layer.offset : layer.offset + layer.units].all()]
    assert gone and all((pruned.model.get_parameter(layer.weight).flatten(1) == 0).all(1).any() for layer in gone)


@pytest.mark.parametrize("method", [FirstOrderConfig(max_evaluations=20), AgentConfig(max_evaluations=20)])
def test_each_method_keeps_to_its_budget_and_follows_the_seed(backdoored, splits, method):
    first, again = (
        search_mask(backdoored.victim, splits, BANK, None, SearchRun(SearchConfig(method), seed=2)) for _ in range(2)
    )
    assert first.evaluations <= 20 and torch.equal(first.mask.keep, again.mask.keep)
    learned = any(update.entropy for update in first.results[0].history)
    assert learned == isinstance(method, AgentConfig), "only the agent has a policy"


def test_the_required_budget_is_known_where_a_mask_removes_enough(backdoored, splits):
    result = search_mask(backdoored.victim, splits, BANK, None, SearchRun(CONFIG))
    assert result.works and result.required_budget <= CONFIG.objective.acc_budget + 1e-6


def test_the_next_part_of_the_budget_is_tried_only_where_no_mask_works(backdoored, splits):
    def with_parts(*parts):
        run = SearchRun(replace(CONFIG, objective=CONFIG.objective.with_budget(0.05), budget_parts=parts))
        return search_mask(backdoored.victim, splits, BANK, None, run)

    whole = with_parts(1.0)
    assert whole.works and float(whole.outcome.expected_acc_loss) > 0
    first, second = with_parts(1.0, 0.5), with_parts(0.0, 1.0)
    assert len(first.results) == 1 and torch.equal(first.mask.keep, whole.mask.keep)
    assert second.works and len(second.results) == 2 and second.outcome is second.results[1].outcome
    assert second.evaluations == sum(each.evaluations for each in second.results) > whole.evaluations
    assert float(second.results[0].outcome.expected_acc_loss) == 0.0, "no accuracy was to be lost"
