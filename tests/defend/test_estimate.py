"""What is done differently where a pass is expensive, and that nothing is where it is not."""

from dataclasses import replace

from onp.defend import expensive
from onp.defend.estimate import affordable
from onp.defend.presets import PRESETS


def test_a_cheap_network_is_left_as_it_is(backdoored):
    assert affordable(backdoored.victim, PRESETS["fast"]) is PRESETS["fast"]


def test_an_expensive_one_takes_half_the_images_and_masks(backdoored, monkeypatch):
    monkeypatch.setattr(expensive, "EXPENSIVE", 0.0)
    fast = PRESETS["fast"]
    less = affordable(backdoored.victim, fast)
    assert (less.bank.scan.images, less.bank.refine.images, less.bank.starts) == (4, 6, 2)
    assert less.search.agent.max_evaluations == 50 and (less.search.views, less.search.target_views) == (1, 4)
    scan, refine = (replace(config, images=0) for config in (less.bank.scan, less.bank.refine))
    assert (scan, refine) == tuple(replace(config, images=0) for config in (fast.bank.scan, fast.bank.refine))
    assert less.search.objective == fast.search.objective and less.bank.threshold == fast.bank.threshold
