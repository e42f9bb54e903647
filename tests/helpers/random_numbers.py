"""The fixture of random numbers, on its own so that `bench/gpu.sh` can do without what conftest.py imports."""

import os
import random

import pytest
import torch


@pytest.fixture
def rng() -> torch.Generator:
    """Fresh random numbers in every run. A failing test shows the seed; ONP_TEST_SEED repeats it."""
    seed = int(os.environ.get("ONP_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"ONP_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)
