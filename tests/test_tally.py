"""Divergences of networks that are very sure."""

import math

import pytest
import torch
from torch import nn

from onp.data import Normalisation
from onp.evaluator import Batch
from onp.tally import Tally
from onp.victim import victim_from_module
from onp_kernels.reference import MOST_DIVERGENCE


class LogitsOfPixels(nn.Module):
    """The logits are the pixels, which must not be above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        for layer in (self.hidden, self.head):
            nn.init.eye_(layer.weight).data.neg_()
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x.flatten(1)).relu())


@pytest.mark.parametrize("gap", [20.0, 90.0, 150.0, 5000.0, math.inf])
def test_divergence_of_sure_networks(gap):
    share = 2e-4  # of the class that the pruned network rules out
    logits = torch.tensor([[math.log1p(-share), math.log(share), -300.0]])
    victim = victim_from_module(LogitsOfPixels(), Normalisation.parse("none"), (3, 1, 1))
    tally = Tally(victim, Batch(logits[:, :, None, None], torch.tensor([0])), [], torch.device("cpu"))
    pruned = torch.tensor([[0.0, -gap, -300.0]])
    expected = share * (math.log(share) + gap) + (1 - share) * math.log1p(-share)
    assert float(tally.sums(pruned)[2, 0]) == pytest.approx(min(expected, MOST_DIVERGENCE), abs=1e-5, rel=1e-3)
