"""Targeted PGD: adversarial examples stay in their ball and help their target."""

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.detect.config import DetectRun
from onp.detect.pgd import IMAGES, pgd_radius, target_probability, targeted_examples
from onp.model.victim import victim_from_module


def test_adversarial_examples_stay_in_their_ball_and_help_their_target():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4))
    victim = victim_from_module(network, Normalisation((0.0,), (1.0,)), (1, 8, 8))
    images = torch.rand(20, 1, 8, 8)
    radius = pgd_radius(images)
    out = targeted_examples(victim.logits, images, target=2, radius=radius)
    assert float((out - images).flatten(1).norm(dim=1).max()) <= radius * 1.001
    before, after = (victim.logits(x).softmax(1)[:, 2].mean() for x in (images, out))
    assert float(after) > float(before)


def test_each_class_is_aimed_at_from_images_of_others(backdoored, one_thread):
    victim, images, labels = backdoored.victim, backdoored.score.images, backdoored.score.labels
    reached = target_probability(victim, images, labels, (0, 3), DetectRun(seed=2))
    generator = torch.Generator().manual_seed(2)
    for k, chance in zip((0, 3), reached, strict=True):
        others = images[labels != k]
        picked = others[torch.randperm(len(others), generator=generator)[:IMAGES]]
        examples = targeted_examples(victim.logits, picked, target=k, radius=pgd_radius(images))
        assert float(chance) == pytest.approx(float(victim.logits(examples).softmax(1)[:, k].mean()), rel=1e-3)
