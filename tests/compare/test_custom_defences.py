"""Defences of one's own, named like an architecture: what they may return, and what is refused."""

import sys

import pytest
import torch

from onp.compare.cell import Cell, apply_defence
from onp.compare.config import check_defence
from onp.compare.defences import PRUNERS, TUNERS, DefenceConfig, Pruning, defence
from onp.compare.defences.config import fit_and_held_out
from onp.compare.defences.pruning import choose_threshold
from onp.errors import InputError

CONFIG = DefenceConfig(max_acc_drop=0.05, passes=500)
CODE = """
import torch
from onp.model.mask import Mask
from onp.compare.defences import TUNERS, Curve

def masks(victim):
    keep = torch.ones((3, victim.units), dtype=torch.bool)
    for row, count in enumerate((1, 4, victim.units)):
        keep[row, :count] = False
    return keep

def mask(victim, clean, config):
    return Mask.of(victim, masks(victim)[1])

def curve(victim, clean, config):
    return Curve((1.0, 2.0, 3.0), masks(victim))

def tuned(victim, clean, config):
    return TUNERS["ft"](victim, clean, config)

def nothing(victim, clean, config):
    return None

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder holds `own_ideas.py`."""
    (tmp_path / "own_ideas.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_ideas", None)


def test_a_mask_a_curve_or_a_network_says_what_a_defence_of_ones_own_is(own, backdoored, pictures):
    victim = backdoored.victim
    pruning = defence("own_ideas:mask")(victim, pictures, CONFIG)
    assert isinstance(pruning, Pruning) and (~pruning.mask.keep).nonzero().flatten().tolist() == [0, 1, 2, 3]
    chosen = defence("own_ideas:curve")(victim, pictures, CONFIG)
    expected = choose_threshold(victim, fit_and_held_out(pictures, CONFIG.seed)[1], chosen.curve, CONFIG.max_acc_drop)
    assert torch.equal(chosen.mask.keep, expected.mask.keep) and bool(chosen.mask.keep[4:].all())
    tuned, usual = (defence(name)(victim, pictures, CONFIG) for name in ("own_ideas:tuned", "ft"))
    assert all(torch.equal(value, usual.model.state_dict()[key]) for key, value in tuned.model.state_dict().items())


def test_baseline_defences_go_by_their_names():
    assert defence("clp") == PRUNERS["clp"].run and defence("nad") is TUNERS["nad"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "There is no defence 'nothing'; choose from fp, .*, or package.module:callable"),
        ("no_such_module:mask", "The defence 'no_such_module:mask' cannot be imported .*; write the name of a defence or"),
        ("own_ideas:no_such", "cannot be imported"),
        ("own_ideas:number", "is of type int, not a function or class"),
    ],
)
def test_what_is_no_defence_is_refused_in_one_sentence(own, name, says):
    with pytest.raises(InputError, match=says) as refused:
        defence(name)
    assert "\n" not in str(refused.value)


def test_what_a_defence_returns_is_checked(own, backdoored, pictures):
    with pytest.raises(InputError, match="returned an object of type NoneType, not a Mask, Curve or Victim"):
        defence("own_ideas:nothing")(backdoored.victim, pictures, CONFIG)


def test_a_table_takes_defences_of_ones_own(own, backdoored, pictures):
    for name in ("own_ideas:curve", "own_ideas:mask+ft"):
        check_defence(name)
    with pytest.raises(InputError, match="own_ideas:other"):
        check_defence("own_ideas:other")

    def defended(name):
        return apply_defence(Cell(None, name, 0, "fast", 0.05, 500, 0), backdoored.victim, pictures)

    assert defended("own_ideas:mask").decision == "repaired" and defended("own_ideas:tuned").decision == "tuned"
    both = defended("own_ideas:mask+ft")
    assert int((~both.mask.keep).sum()) == 4
    first = backdoored.victim.layers[0]
    assert not bool(both.victim.model.state_dict()[first.weight][:4].any()), "the pruned rows stay at zero"
    with pytest.raises(InputError, match="trains already"):
        defended("own_ideas:tuned+ft")
