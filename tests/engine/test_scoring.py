"""Divergences of networks that are very sure."""

import math

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.engine.scoring import Batch, ScoreCounter, TriggeredBatch
from onp.model.victim import victim_from_module
from onp_kernels.reference_conv import MOST_DIVERGENCE


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
    counter = ScoreCounter(victim, Batch(logits[:, :, None, None], torch.tensor([0])), [])
    pruned = torch.tensor([[0.0, -gap, -300.0]])
    expected = share * (math.log(share) + gap) + (1 - share) * math.log1p(-share)
    assert float(counter.sums(pruned)[2, 0]) == pytest.approx(min(expected, MOST_DIVERGENCE), abs=1e-5, rel=1e-3)


def test_logits_that_are_no_numbers_count_as_wrong_and_stay_with_their_image():
    victim = victim_from_module(LogitsOfPixels(), Normalisation.parse("none"), (3, 1, 1))
    images = -torch.rand(4, 3, 1, 1)
    goal = torch.zeros(2, dtype=torch.int64)
    families = [TriggeredBatch(name, images[:2], goal + 1, goal) for name in ("a", "b")]
    counter = ScoreCounter(victim, Batch(images, torch.zeros(4, dtype=torch.int64)), families)
    logits = torch.tensor([[3.0, 0.0, 0.0]]).repeat(8, 1)
    whole = counter.sums(logits)
    logits[0] = logits[7] = torch.nan
    hits, probability, divergence = (counter.sums(logits) - whole).tolist()
    assert hits == [-1, 0, -1]
    assert probability == pytest.approx([-float(whole[1, 0]) / 4, 0, -float(whole[1, 2]) / 2])
    assert divergence[0] > MOST_DIVERGENCE - 5 and divergence[1:] == [0, 0]
