"""Targeted PGD: adversarial examples stay in their ball and help their target."""

import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.detect.pgd import pgd_radius, targeted_examples
from onp.model.victim import victim_from_module


def test_adversarial_examples_stay_in_their_ball_and_help_their_target():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4))
    victim = victim_from_module(network, Normalisation((0.0,), (1.0,)), (1, 8, 8))
    images = torch.rand(20, 1, 8, 8)
    radius = pgd_radius(images)
    out = targeted_examples(victim, images, target=2, radius=radius)
    assert float((out - images).flatten(1).norm(dim=1).max()) <= radius * 1.001
    before, after = (victim.logits(x).softmax(1)[:, 2].mean() for x in (images, out))
    assert float(after) > float(before)
