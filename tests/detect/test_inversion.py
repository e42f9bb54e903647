"""Fitting triggers: large images are fitted a few classes at a time, to the same triggers."""

import torch
import torch.nn.functional as F

from onp.detect.inversion import FitConfig, fit, success_rate
from onp.detect.trigger_families import FAMILIES
from onp.engine import metrics
from onp.engine.metrics import at_once, predictions

CONFIG = FitConfig(steps=6, images=3)


def test_how_many_images_run_together():
    assert at_once(torch.empty(5, 3, 32, 32), 250) == 250
    assert at_once(torch.empty(5, 3, 224, 224), 250) == 27
    assert at_once(torch.empty(2, 5, 3, 224, 224), 250) == 27, "images [G, N, C, H, W] count the same"
    assert at_once(torch.empty(5, 3, 4096, 4096), 250) == 1


def test_a_few_at_a_time_fit_the_same_triggers(backdoored, monkeypatch):
    images, labels, victim = backdoored.build.images, backdoored.build.labels, backdoored.victim
    for family in FAMILIES:
        fits = []
        for values in (2**22, 2 * 3 * 64, 1):  # all four classes, two, and one at a time
            monkeypatch.setattr(metrics, "VALUES_AT_ONCE", values)
            fits.append(fit([victim.logits, victim.logits], family, images, labels, range(4), 7, CONFIG))
        for other in fits[1:]:
            torch.testing.assert_close(other.cost, fits[0].cost, rtol=1e-3, atol=1e-4)
            assert torch.equal(other.worked, fits[0].worked)


def test_success_and_predictions_do_not_depend_on_the_batch(backdoored, small, monkeypatch):
    images, labels, victim = backdoored.score.images, backdoored.score.labels, backdoored.victim
    whole = success_rate(victim.logits, small.stamp, images, labels, 0), predictions(victim.model, images)
    assert whole[0] > 0.9
    monkeypatch.setattr(metrics, "VALUES_AT_ONCE", 64 * 7)
    assert success_rate(victim.logits, small.stamp, images, labels, 0) == whole[0]
    assert torch.equal(predictions(victim.model, images), whole[1])


def test_a_warp_is_a_bicubic_interpolation_of_its_control_points():
    warp = next(family for family in FAMILIES if family.name == "warp")
    parameters = warp.start(3, (1, 20, 28), torch.Generator().manual_seed(0))
    wanted = F.interpolate(2.0 * torch.tanh(parameters[0]), (20, 28), mode="bicubic", align_corners=True)
    assert torch.allclose(warp.flow(parameters, 20, 28), wanted, atol=1e-5)
