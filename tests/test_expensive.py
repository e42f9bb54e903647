"""What is done differently where a pass is expensive, and that nothing is where it is not."""

from dataclasses import replace

import evaluator_cases
import pytest
import torch

from onp import expensive
from onp.estimate import affordable
from onp.expensive import fitting_logits, fused_logits
from onp.plan import build_plan
from onp.presets import PRESETS


@pytest.mark.parametrize("name", evaluator_cases.NETWORKS)
@pytest.mark.parametrize("count", [1, 5])
def test_fused_logits_and_their_gradients_are_those_of_the_network(name, count, rng):
    victim = evaluator_cases.lively_victim(evaluator_cases.NETWORKS[name])
    images = torch.rand(count, *victim.input_shape, generator=rng).requires_grad_()
    weights = torch.randn(victim.classes, generator=rng)
    fused = fused_logits(victim, build_plan(victim))
    for _ in range(2):  # the second time with the same tensors: nothing may have been overwritten
        found, expected = fused(images), victim.logits(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # logits of about 2
        gradient, reference = (torch.autograd.grad((logits @ weights).sum(), images)[0] for logits in (found, expected))
        # Not closer: rounding decides a few activations that lie at the kink of a ReLU.
        assert float(reference.norm()) > 0 and float((gradient - reference).norm()) <= 0.01 * float(reference.norm())


def test_a_cheap_network_is_left_as_it_is(backdoored):
    victim = backdoored.victim
    assert fitting_logits(victim) == victim.logits
    assert affordable(victim, PRESETS["fast"]) is PRESETS["fast"]


def test_an_expensive_one_takes_half_the_images_and_masks(backdoored, monkeypatch):
    monkeypatch.setattr(expensive, "EXPENSIVE", 0.0)
    assert fitting_logits(backdoored.victim) != backdoored.victim.logits
    fast = PRESETS["fast"]
    less = affordable(backdoored.victim, fast)
    assert (less.bank.scan.images, less.bank.refine.images, less.bank.starts) == (4, 6, 2)
    assert less.search.agent.max_evaluations == 50 and (less.search.views, less.search.target_views) == (1, 4)
    scan, refine = (replace(config, images=0) for config in (less.bank.scan, less.bank.refine))
    assert (scan, refine) == tuple(replace(config, images=0) for config in (fast.bank.scan, fast.bank.refine))
    assert less.search.objective == fast.search.objective and less.bank.threshold == fast.bank.threshold
