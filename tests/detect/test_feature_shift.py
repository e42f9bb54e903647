"""The smallest shift of early features: least for the target of a backdoor, and in networks of tokens too."""

import pytest
import torch
from torch import nn

from onp.data.images import ImageSet, split
from onp.data.normalisation import Normalisation
from onp.detect.config import DetectRun, InversionConfig
from onp.detect.feature_shift import EarlyFeatures, early_feature_costs
from onp.model.victim import victim_from_module

CLASSES = (0, 1, 2, 3)


class Tokens(nn.Module):
    """Nine patches, as tokens of sixteen features."""

    def __init__(self):
        super().__init__()
        self.patches, self.mixed, self.head = nn.Conv2d(1, 16, 4, stride=4), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.mixed(torch.relu(x))).mean(1))


@pytest.fixture
def clean():
    images = torch.randint(0, 256, (80, 1, 12, 12), dtype=torch.uint8)
    return split(ImageSet(images, torch.arange(80) % 4, tuple("abcd")), 0)


def victim_of(network):
    return victim_from_module(network, Normalisation.parse("half"), (1, 12, 12))


def test_the_target_of_a_backdoor_costs_least(backdoored, small, one_thread):
    clean = split(small.clean_images(), 0)
    cost, rates = early_feature_costs(backdoored.victim, clean, CLASSES, InversionConfig(30, 8), DetectRun())
    assert min(rates) > 0.8 and float(cost[0]) < 0.8 * float(cost[1:].min())


def test_features_lead_to_the_logits_of_the_images(clean, one_thread):
    maps = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for network, shape in ((maps.append(nn.Linear(8, 4)), 3), (Tokens(), 2)):
        victim = victim_of(network)
        early = EarlyFeatures.of(victim, clean.build)
        assert len(early.cut.shape) == shape
        features = early.read(clean.score, victim)
        torch.testing.assert_close(early.logits(features), victim.logits(clean.score.pixels()), rtol=1e-3, atol=1e-3)
        assert float(early.read(clean.build, victim).std((0, 2, 3)).max()) == pytest.approx(1, abs=0.01)


def test_a_network_of_one_layer_before_the_last_has_no_early_features(clean):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    assert early_feature_costs(victim_of(network), clean, CLASSES, InversionConfig(2, 2), DetectRun()) is None
