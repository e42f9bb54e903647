"""ACC, ASR, RA, DER and their intervals."""

import pytest
import torch

from onp.engine.metrics import Share, attack_success, defence_effectiveness, robust_accuracy


def test_asr_and_ra_leave_the_target_class_out():
    labels = torch.tensor([0, 0, 1, 2, 2])
    guess = torch.tensor([0, 0, 0, 2, 0])
    assert attack_success(labels, guess, 0) == Share(2, 3)
    assert robust_accuracy(labels, guess, 0) == Share(1, 3)


def test_each_image_may_have_a_target_of_its_own():
    labels = torch.tensor([0, 0, 1, 2, 2])
    guess = torch.tensor([1, 0, 2, 2, 1])
    goals = (labels + 1) % 3
    assert attack_success(labels, guess, goals) == Share(2, 5)
    assert robust_accuracy(labels, guess, goals) == Share(2, 5)


def test_exact_interval_against_published_values():
    # Clopper-Pearson for 0/10 and 8/10 at 95 %: 1 - 0.025 ** (1 / 10), and the table of Newcombe 1998 style examples.
    low, high = Share(0, 10).interval
    assert low == 0 and high == pytest.approx(1 - 0.025**0.1)
    low, high = Share(8, 10).interval
    assert (low, high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))


def test_no_images_no_knowledge():
    assert Share(0, 0).interval == (0.0, 1.0)


def test_der_rewards_lower_asr_and_charges_lost_acc():
    assert defence_effectiveness(0.9, 0.9, 1.0, 0.0) == 1.0
    assert defence_effectiveness(0.9, 0.9, 1.0, 1.0) == 0.5
    assert defence_effectiveness(0.9, 0.8, 1.0, 0.0) == pytest.approx(0.95)
    assert defence_effectiveness(0.8, 0.9, 0.1, 0.2) == 0.5
