"""Shared fixtures. The first lines must stay first: triton reads its switch when it is first imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import random

import pytest
import torch


@pytest.fixture
def rng() -> torch.Generator:
    """Fresh random numbers in every run. A failing test shows the seed; ONP_TEST_SEED repeats it."""
    seed = int(os.environ.get("ONP_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"ONP_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)
