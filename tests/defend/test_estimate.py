"""How long a run will take, and smaller settings where a pass is expensive and nowhere else."""

from dataclasses import replace

import pytest

from onp.defend.config import DefendConfig
from onp.defend.estimate import (
    Estimate,
    affordable,
    announce,
    announce_repair,
    estimate,
    scaled_down,
    seconds_an_image,
)
from onp.defend.monitor import Monitor
from onp.defend.presets import PRESETS
from onp.defend.run import Run

FAST = PRESETS["fast"]


def test_a_cheap_network_is_left_as_it_is(backdoored):
    assert affordable(backdoored.victim, FAST) is FAST


def test_an_expensive_one_takes_half_the_images_and_masks(backdoored):
    less = affordable(backdoored.victim, FAST, expensive=0.0)
    assert (less.detect.scan.images, less.detect.refine.images, less.detect.starts) == (2, 6, 2)
    assert less.detect.change_images == FAST.detect.change_images / 4
    assert less.search.method.max_evaluations == 50
    assert less.search.target_augmentations == 4
    scan, refine = (replace(config, images=0) for config in (less.detect.scan, less.detect.refine))
    assert (scan, refine) == tuple(replace(config, images=0) for config in (FAST.detect.scan, FAST.detect.refine))
    assert less.search.objective == FAST.search.objective


@pytest.mark.parametrize("preset", ["fast", "default"])
def test_only_fast_runs_are_scaled_down(backdoored, preset):
    run = Run(DefendConfig(preset=preset), PRESETS[preset])
    masks = scaled_down(run, backdoored.victim, expensive=0.0).preset.search.method.max_evaluations
    assert masks == (50 if preset == "fast" else PRESETS[preset].search.method.max_evaluations)


def test_the_estimate_counts_passes(backdoored, small):
    known = small.case(backdoored.victim)
    case = replace(known, known_trigger=None)
    found = estimate(case, small.PRESET, 1.0)
    # Classes x (images x ((families and early features) x steps + steps of patches), PGD images x steps); augmented and probed
    # images forwards only.
    probed = 4 * 24 * 32 + 11 * 8 * 4 * 8 + 8 * 8 * 8 * 7
    assert found.detection == pytest.approx(4 * (8 * (6 * 15 + 24) + 16 * 5) + (6 * 60 + probed) / 3)
    steps = 4 * 15 + 24 + 40  # of the families, of small patches and of images to mix in
    healed = 2 * (2 * 6 * 120 + 2 * 150 * 64) / 3
    assert found.repair == pytest.approx(2 * steps * 2 * 8 + 100 * 2 * 60 / 6 + healed)
    scan = estimate(case, small.PRESET, 1.0, repairing=False)
    assert scan.detection == found.detection and scan.repair == steps * 2 * 8, "inverted once more, no mask scored"
    assert str(scan).endswith("more to invert its triggers again")
    given = estimate(known, small.PRESET, 1.0)
    assert given.detection == 0 and given.repair == pytest.approx(100 * 2 * 60 / 6 + healed)
    text = "40 s to look for a backdoor and, if there is one, 10 minutes more to repair it"
    assert str(Estimate(44.0, 600.0)) == text and str(Estimate(0.0, 7200.0)) == "2.0 hours to repair it"
    assert 0 < seconds_an_image(case.victim, case.clean.build) < 1


def test_a_long_run_says_so_first(backdoored, small, capsys):
    case = replace(small.case(backdoored.victim), known_trigger=None)
    for quiet in (False, True):
        announce(case, Run(DefendConfig(), small.PRESET, Monitor(quiet)), seconds=1.0)
    announce(case, Run(DefendConfig(), small.PRESET, Monitor()), seconds=1e-6)
    (line,) = capsys.readouterr().err.splitlines()
    assert "to look for a backdoor and, if there is one," in line and line.endswith("--preset fast or a GPU are quicker.")


def test_a_long_repair_is_foretold_again_at_the_pace_of_detection(capsys, small):
    run = Run(DefendConfig(), small.PRESET, Monitor())
    ahead = Estimate(10.0, 100.0)
    announce_repair(ahead, 50.0, run)  # five times as long as foretold
    announce_repair(ahead, 10.0, run)
    announce_repair(ahead, 0.0, run)  # read from an earlier run
    announce_repair(Estimate(0.0, 1000.0), 0.0, run)  # a known trigger
    assert capsys.readouterr().err.splitlines() == ["About 8 minutes more, as fast as it went so far."]


def test_the_median_of_several_batches_counts(backdoored, small, monkeypatch):
    took = (0.5, 0.16, 9.0, 0.32, 0.16, 8.0)  # the first warms up
    clock = iter([moment for start, seconds in enumerate(took) for moment in (100.0 * start, 100.0 * start + seconds)])
    monkeypatch.setattr("onp.defend.estimate.time.monotonic", lambda: next(clock))
    assert seconds_an_image(backdoored.victim, small.case(backdoored.victim).clean.build) == pytest.approx(0.32 / 16)
