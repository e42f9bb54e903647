"""Shared fixtures. The first lines must stay first: triton reads its switch when it is first imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from onp.config import DefendConfig
from onp.defend import run
from onp.features import features
from onp.monitor import Monitor


@pytest.fixture
def rng() -> torch.Generator:
    """Fresh random numbers in every run. A failing test shows the seed; ONP_TEST_SEED repeats it."""
    seed = int(os.environ.get("ONP_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"ONP_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def small():
    """The functions of small_backdoor.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_backdoor.py"))))


@pytest.fixture(scope="session")
def backdoored(small):
    """A tiny victim with a planted patch backdoor; trained once, read by all."""
    return small.backdoored()


@pytest.fixture(scope="session")
def outcome(small, backdoored):
    """A repair of the tiny victim."""
    return run(small.case(backdoored.victim), DefendConfig(quiet=True), small.PRESET, Monitor(quiet=True))


@pytest.fixture(scope="session")
def known(backdoored):
    """Its node features."""
    return features(backdoored.victim, backdoored.build, backdoored.build_triggered, (1.0,))
