"""ACC, ASR, RA, DER, their intervals, and how a network is measured."""

import pytest
import torch
from torch import nn

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.engine import metrics
from onp.engine.metrics import (
    Share,
    accuracy,
    at_once,
    attack_success,
    batches_of,
    defence_effectiveness,
    measure,
    predictions,
    robust_accuracy,
)
from onp.engine.scoring import Batch, TriggeredBatch


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


def test_measure_counts_what_the_definitions_say_in_any_number_of_batches():
    model, generator = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.Generator().manual_seed(0)
    clean, triggered = (torch.randn(n, 3, 2, 2, generator=generator) for n in (40, 30))
    labels, own = (torch.randint(0, 3, (n,), generator=generator) for n in (40, 30))
    target, done = torch.full((30,), 1), []
    answers, led = predictions(model, clean), predictions(model, triggered)
    parts = [Batch(clean[a:b], labels[a:b]) for a, b in ((0, 7), (7, 30), (30, 40))]
    families = [TriggeredBatch("t", triggered[a : a + 15], own[a : a + 15], target[a : a + 15]) for a in (0, 15)]
    found = measure(model, parts, 1, families, done.append)
    assert found.acc == accuracy(labels, answers) and found.asr_clean == attack_success(labels, answers, 1)
    assert found.asr == attack_success(own, led, 1) and found.ra == robust_accuracy(own, led, 1)
    torch.testing.assert_close(found.probabilities, model(clean).softmax(1).detach())
    assert sum(done) == 70
    alone = measure(model, parts)
    assert alone.acc == found.acc and alone.asr is alone.ra is alone.asr_clean is None


def test_batches_are_normalised_and_few_large_images_run_together():
    images = ImageSet(torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8), torch.arange(5), ["a"] * 5)
    normalisation = Normalisation((0.5,), (0.25,))
    (batch,) = batches_of(images, normalisation, torch.device("cpu"))
    assert torch.equal(batch.images, normalisation(images.pixels())) and torch.equal(batch.labels, images.labels)
    assert at_once(images.images, 250) == 250 and at_once(images.images, 250, values=32) == 2


def test_a_network_that_keeps_values_in_itself_is_measured_in_threads():
    class Keeping(nn.Module):
        def forward(self, x):
            self.kept = x.mean((2, 3))
            x.square().sum().exp()  # others run meanwhile
            return self.kept * torch.tensor([1.0, -1.0])

    images, threads, done = torch.randn(700, 2, 40, 40), torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        found = predictions(Keeping(), images, done.append)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, (images.mean((2, 3)) * torch.tensor([1.0, -1.0])).argmax(1))
    assert sum(done) == 700 and len(done) > 3


@pytest.mark.parametrize("size, copies", [((2, 24, 24), 3), ((3, 600, 600), 0)])
def test_large_images_are_measured_by_one_network(size, copies, monkeypatch):
    made, threads = [], torch.get_num_threads()
    monkeypatch.setattr(metrics.copy, "deepcopy", lambda model: made.append(model) or model)
    torch.set_num_threads(3)
    try:
        predictions(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(60, *size))
    finally:
        torch.set_num_threads(threads)
    assert len(made) == copies
