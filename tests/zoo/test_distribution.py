"""What the networks of a zoo are drawn from."""

from collections import Counter

import numpy as np
import pytest

from onp.attack.triggers import TRIGGERS
from onp.model.archs import NETWORKS
from onp.zoo.datasets import DATASETS
from onp.zoo.distribution import SLIGHT, Distribution
from onp.zoo.recipe import AFTER, FAMILIES

RECIPES = [Distribution().draw(1, index, tuple(DATASETS)) for index in range(600)]


def test_every_attack_is_of_one_family_and_drawn():
    named = [attack for attacks in FAMILIES.values() for attack in attacks]
    assert sorted(named) == sorted(TRIGGERS)
    assert {each.attack for recipe in RECIPES for each in recipe.backdoors} == set(TRIGGERS)


def test_all_networks_data_sets_and_treatments_are_drawn():
    assert {recipe.training.arch for recipe in RECIPES} == set(NETWORKS)
    assert {recipe.training.data for recipe in RECIPES} == set(DATASETS)
    counts = Counter(recipe.after for recipe in RECIPES)
    assert set(counts) == set(AFTER)
    assert counts["none"] == pytest.approx(400, abs=45) and all(counts[name] > 25 for name in AFTER)


def test_half_of_the_networks_are_clean_and_some_have_two_backdoors():
    counts = Counter(len(recipe.backdoors) for recipe in RECIPES)
    assert counts[0] == pytest.approx(300, abs=45) and counts[2] > 10
    for recipe in RECIPES:
        targets = [each.target for each in recipe.backdoors]
        assert len(set(targets)) == len(targets) and all(target < len(recipe.training.labels) for target in targets)


def test_the_training_does_not_depend_on_the_backdoor():
    clean = Distribution(clean=1.0)
    again = [clean.draw(1, index, tuple(DATASETS)) for index in range(50)]
    assert [recipe.training for recipe in again] == [recipe.training for recipe in RECIPES[:50]]
    assert not any(recipe.backdoors for recipe in again)


def test_draws_are_repeatable_and_differ_between_seeds():
    assert Distribution().draw(1, 7, tuple(DATASETS)) == RECIPES[7]
    assert Distribution().draw(2, 7, tuple(DATASETS)) != RECIPES[7]


def test_poison_rates_are_log_uniform_within_bounds():
    distribution = Distribution(least_poisoned=(0, 0))
    drawn = [distribution.draw(3, index, tuple(DATASETS)) for index in range(600)]
    others = [each for one in drawn for each in one.backdoors if each.attack not in SLIGHT]
    rates = [each.poison_rate for each in others if not TRIGGERS[each.attack].clean_label]
    low, high = distribution.poison_rate
    assert low <= min(rates) and max(rates) <= high
    assert float(np.median(rates)) == pytest.approx((low * high) ** 0.5, rel=0.25)


def test_a_filter_of_colours_is_for_colours():
    grey = {name for name, data in DATASETS.items() if not data.coloured}
    assert grey and not any(
        each.attack in ("filter", "bpp") for one in RECIPES if one.training.data in grey for each in one.backdoors
    )
