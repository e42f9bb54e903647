"""Images to mix in: fitted at a fixed weight, for a class or several, whatever they cost."""

from dataclasses import replace

import pytest
import torch

from onp.data.images import split
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import FAMILY_NAMES, TargetClass, inversion_steps, invert_triggers
from onp.detect.blend import BLEND, EVIDENCE, STEPS, WEIGHT, fit_blends
from onp.detect.config import DetectConfig, DetectRun, InversionConfig
from onp.detect.fit_pixels import Fit, fit_pixels
from onp.detect.inversion import InversionTask

CONFIG = DetectConfig(refine=InversionConfig(steps=15, images=8, min_confidence=0.97), starts=2)
WANTED = torch.rand((1, 9, 11), generator=torch.Generator().manual_seed(2)).round() - 0.5


def logits(x):
    """Class 0; class 2 the more, the more of a hidden pattern there is in the image."""
    likeness = ((x - 0.5) * WANTED).mean((1, 2, 3))
    return torch.stack((0 * likeness + 1, 0 * likeness, 160 * likeness, 0 * likeness), 1)


@pytest.fixture(scope="module")
def task():
    pixels = 0.4 + 0.2 * torch.rand((24, 1, 9, 11), generator=torch.Generator().manual_seed(0))
    return InversionTask((logits,), pixels, torch.arange(24) % 4, (2, 1, 2, 2, 2))


def test_an_image_is_fitted_that_leads_to_its_class_when_it_is_mixed_in(task):
    steps = []
    run = DetectRun(seed=3, progress=lambda count=1, known=False: steps.append(count))
    found = fit_blends(task, 6, run)
    assert sum(steps) == STEPS and found.targets == task.targets and found.images.shape == (5, 1, 9, 11)
    assert float(found.images.amin()) >= 0 and float(found.images.amax()) <= 1 and len(found.cost) == 5
    mixed = found.apply(task.images, 0)
    torch.testing.assert_close(mixed, (1 - WEIGHT) * task.images + WEIGHT * found.images[0])
    before, after = (logits(each).softmax(1)[:, 2].mean() for each in (task.images, mixed))
    assert float(after) > 0.9 > 0.4 > float(before)
    assert not torch.equal(found.images[0], found.images[2]), "each starts from another field"
    assert torch.equal(fit_blends(task, 6, run).images, found.images)


def test_a_few_at_a_time_are_fitted_as_all_together(task):
    start = torch.zeros(5, 1, 9, 11)

    def mixed(images, pixels, rows):
        assert pixels.shape[0] == images.shape[0] == len(rows)
        return torch.lerp(images, pixels[:, None], WEIGHT)

    (together, losses), (few, losses_of_few) = (
        fit_pixels(task, start, mixed, Fit(4, 0.1, 6), DetectRun(seed=1, values_at_once=values)) for values in (10**6, 13 * 99)
    )
    torch.testing.assert_close(few, together)
    torch.testing.assert_close(losses_of_few, losses)
    assert not start.any(), "what was given is not changed"


def test_a_trigger_must_work_on_every_network(task):
    """The second network answers to the negative of the pattern; an image for both leads to neither."""
    both = InversionTask((logits, lambda x: logits(1 - x)), task.images, task.labels, (2,))
    _, of_both = fit_pixels(both, torch.zeros(1, 1, 9, 11), lambda x, p, _: torch.lerp(x, p[:, None], WEIGHT), FIT, DetectRun())
    _, of_one = fit_pixels(
        InversionTask((logits,), task.images, task.labels, (2,)),
        *(torch.zeros(1, 1, 9, 11), lambda x, p, _: torch.lerp(x, p[:, None], WEIGHT), FIT, DetectRun()),
    )
    assert float(of_one) < 0.1 < 1 < float(of_both)


FIT = Fit(40, 0.15, 6)


def test_banks_have_them_where_random_textures_lead_to_the_class(backdoored, small):
    clean, seen = split(small.clean_images(), 0), []
    config = replace(CONFIG, minimum_success=0.0)  # a fifth of an image does little in a network that looks for a patch
    run = DetectRun(config, progress=lambda count=1, known=False: seen.append(count))
    cheap, usual = (-3.0, 0.0, 0.1, 0.2), (0.2, 0.0, 0.1, 0.2)
    for evidence in (usual, cheap):
        costs = {name: cheap if name == "patch" else usual for name in FAMILY_NAMES} | {EVIDENCE: evidence}
        seen.clear()
        bank = invert_triggers(backdoored.victim, TargetClass(0, DetectionScores.of(costs)), clean, run)
        families = [each.family for each in bank.surrogates]
        assert families == (["patch", BLEND] if evidence is cheap else ["patch"])
        assert len(seen) == CONFIG.refine.steps + STEPS * (evidence is cheap) < inversion_steps(CONFIG)
    blend = bank.surrogates[1]
    assert blend.anomaly_index > 1 and bank.weights[1] > 0
    image = clean.holdout.pixels()[:1].repeat(4, 1, 1, 1)
    out = blend.apply(image)
    assert torch.equal(out[2:], out[:-2]) and float((out - image).abs().amax()) <= WEIGHT
