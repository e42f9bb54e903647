"""What a run takes of the memory, and --memory, which bounds it."""

from dataclasses import replace

import pytest
import torch

from onp.defend.config import DefendConfig
from onp.defend.memory import GIB, Memory, memory_of, within_memory
from onp.defend.run import Run
from onp.errors import InputError


def run_with(small, memory, device="cpu"):
    return Run(DefendConfig(memory=memory), small.PRESET, device=torch.device(device))


def test_without_the_option_nothing_changes(backdoored, small):
    run = run_with(small, None)
    assert within_memory(run, small.case(backdoored.victim)) is run


def test_with_little_memory_less_is_held_at_once(backdoored, small):
    case = small.case(backdoored.victim)
    given = memory_of(case, small.PRESET)
    limit = given.resident + 48 * 2**20
    preset = within_memory(run_with(small, limit / GIB), case).preset
    assert preset.values_at_once < small.PRESET.values_at_once
    assert preset.search.cache_bytes < small.PRESET.search.cache_bytes
    assert preset.heal.values < small.PRESET.heal.values
    assert memory_of(case, preset).most <= limit < given.most
    # Nothing else is given up.
    assert replace(preset, values_at_once=small.PRESET.values_at_once, heal=None, search=None) == replace(
        small.PRESET, heal=None, search=None
    )


def test_a_scan_takes_no_memory_for_a_repair(backdoored, small):
    case = small.case(backdoored.victim)
    scan, repair = (memory_of(case, small.PRESET, repairing) for repairing in (False, True))
    assert scan.inversion == repair.inversion > 0 and scan.search == scan.healing == 0 < min(repair.search, repair.healing)


def test_with_much_memory_the_settings_stay(backdoored, small):
    run = run_with(small, 64.0)
    assert within_memory(run, small.case(backdoored.victim)).preset == run.preset


@pytest.mark.parametrize("memory", [0.0, -1.0, 0.001])
def test_too_little_says_how_much_it_takes(backdoored, small, memory):
    with pytest.raises(InputError, match=r"--memory \S+ is too little: this network takes at least \d+\.\d GiB of memory here"):
        within_memory(run_with(small, memory), small.case(backdoored.victim))


@pytest.mark.parametrize("memory", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(backdoored, small, memory):
    with pytest.raises(InputError, match="is no number of GiB"):
        within_memory(run_with(small, memory), small.case(backdoored.victim))


def test_it_is_of_runs_on_a_cpu(backdoored, small):
    with pytest.raises(InputError, match="leave it out, or give --device cpu"):
        within_memory(run_with(small, 8.0, "cuda"), small.case(backdoored.victim))


def test_the_most_is_that_of_the_largest_stage():
    assert Memory(GIB, GIB, 2 * GIB, GIB).most == 3 * GIB
    assert str(Memory(GIB, GIB, 2 * GIB, GIB)) == "3.0 GiB of memory"
