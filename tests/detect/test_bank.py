"""The trigger bank: weights that sum to 1, families that are kept, and images that alternate between a family's triggers."""

import pytest
import torch

from onp.data.images import split
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import (
    FAMILY_NAMES,
    MINIMUM_WEIGHT,
    Surrogate,
    TargetClass,
    TriggerBank,
    inversion_steps,
    invert_triggers,
    weighted_bank,
)
from onp.detect.config import DetectConfig, DetectRun, InversionConfig

CONFIG = DetectConfig(refine=InversionConfig(steps=15, images=8, min_confidence=0.97), starts=2)


def surrogate(family):
    return Surrogate(family, 0, 1.0, 1.0, 0.0, None, lambda images: images)


def anomalous(*families):
    """Scores of four classes in which class 0 is cheap in these families."""
    cheap = (-2.0, 0.0, 0.1, 0.2)
    return DetectionScores.of({name: cheap if name in families else (0.2, 0.0, 0.1, 0.2) for name in FAMILY_NAMES})


def test_the_weights_of_every_bank_sum_to_1():
    with pytest.raises(ValueError, match="sum to 1"):
        TriggerBank((surrogate("patch"), surrogate("warp")), (0.5, 0.6), 0)
    with pytest.raises(ValueError, match="2 surrogates have weights"):
        TriggerBank((surrogate("patch"), surrogate("warp")), (1.0,), 0)
    bank = weighted_bank([surrogate("patch"), surrogate("warp"), surrogate("pgd")], [2.0, 6.0, 0.99 * MINIMUM_WEIGHT * 6], 0)
    assert [each.family for each in bank.surrogates] == ["patch", "warp"] and bank.weights == (0.25, 0.75)


def test_only_anomalous_families_are_inverted_and_weigh_by_their_index(backdoored, small):
    clean, steps = split(small.clean_images(), 0), []
    run = DetectRun(CONFIG, progress=lambda count=1, known=False: steps.append(count))
    bank = invert_triggers(backdoored.victim, TargetClass(0, anomalous("patch")), clean, run)
    assert [each.family for each in bank.surrogates] == ["patch"] and sum(bank.weights) == pytest.approx(1)
    assert len(steps) == CONFIG.refine.steps < inversion_steps(CONFIG)
    (patch,) = bank.surrogates
    assert patch.success >= CONFIG.minimum_success and patch.anomaly_index > 1 and patch.bn_match is None


def test_other_families_than_those_asked_for_are_not_inverted(backdoored, small):
    clean, scores = split(small.clean_images(), 0), anomalous("patch", "perturbation")
    of_all, of_one = (
        invert_triggers(backdoored.victim, TargetClass(0, scores, families=families), clean, DetectRun(CONFIG))
        for families in (None, frozenset({"perturbation"}))
    )
    assert {each.family for each in of_all.surrogates} == {"patch", "perturbation"}
    assert [each.family for each in of_one.surrogates] == ["perturbation"]


def test_where_no_family_is_anomalous_the_general_ones_weigh_alike(backdoored, small):
    bank = invert_triggers(backdoored.victim, TargetClass(0, anomalous()), split(small.clean_images(), 0), DetectRun(CONFIG))
    assert {each.family for each in bank.surrogates} <= {"patch", "perturbation", "pgd"}
    assert len(set(bank.weights)) == 1 and sum(bank.weights) == pytest.approx(1)


def test_triggers_must_work_on_the_repaired_network_too(backdoored, small):
    """Of a network that knows class 3 alone no trigger leads to class 0; then only PGD on the victim is left."""
    constant = small.network().eval()
    torch.nn.init.zeros_(constant[-1].weight)
    constant[-1].bias.data = torch.tensor([-5.0, -5.0, -5.0, 5.0])
    repaired = small.victim_of(constant)
    bank = invert_triggers(
        backdoored.victim, TargetClass(0, anomalous("patch")), split(small.clean_images(), 0), DetectRun(CONFIG), repaired
    )
    assert [each.family for each in bank.surrogates] == ["pgd"] and bank.weights == (1.0,)


def test_images_alternate_between_the_triggers_of_a_family(backdoored, small):
    clean = split(small.clean_images(), 0)
    bank = invert_triggers(backdoored.victim, TargetClass(0, anomalous("patch")), clean, DetectRun(CONFIG))
    image = clean.holdout.pixels()[:1].repeat(8, 1, 1, 1)
    out = bank.surrogates[0].apply(image)
    period = next(n for n in range(1, 9) if n == 8 or torch.equal(out[n:], out[:-n]))
    assert 1 < period <= 2 * CONFIG.starts, "every start as inverted, and again stronger"
