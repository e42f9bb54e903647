"""Evaluator.score as its callers see it: masks scored before, shapes, devices, what counts, bad input."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import evaluator_cases as CASES
from torch import nn

from onp.engine.backend import Machine
from onp.engine.evaluator import Evaluator, Scores
from onp.engine.scoring import Batch, TriggeredBatch
from onp.engine.settings import EvaluatorSettings, Tuning
from onp.errors import InputError
from onp.model.archs import build_network

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [field.name for field in fields(Scores)]


def test_a_mask_is_computed_once(preact):
    clean, triggered = CASES.batches()
    evaluator = Evaluator(preact, clean, triggered)
    masks = CASES.random_masks(preact, 3)
    first = evaluator.score(masks[[0, 1, 0, 2, 1]])
    assert evaluator.evaluations == 3
    evaluator.commit(masks[2])
    second = evaluator.score(masks[[2, 2, 0]])
    assert evaluator.evaluations == 3
    assert evaluator.seconds > 0
    for name in NAMES:
        torch.testing.assert_close(getattr(second, name), getattr(first, name)[[3, 3, 0]], rtol=0, atol=0)
    again = Evaluator(preact, clean, triggered).score(masks[:1])
    assert again.acc_count[0] == first.acc_count[0] == first.acc_count[2]


def test_shapes_dtypes_and_no_masks(preact):
    clean, triggered = CASES.batches()
    evaluator = Evaluator(preact, clean, triggered)
    for count in (0, 1):
        scores = evaluator.score(torch.ones(count, preact.units, dtype=torch.bool))
        assert scores.acc.shape == scores.acc_soft.shape == scores.divergence.shape == scores.acc_count.shape == (count,)
        assert scores.asr.shape == scores.asr_soft.shape == scores.asr_count.shape == (count, 2)
        assert scores.acc.dtype == scores.asr.dtype == scores.divergence.dtype == torch.float64
        assert scores.acc_soft.dtype == scores.asr_soft.dtype == torch.float64
        assert scores.acc_count.dtype == scores.asr_count.dtype == torch.int64
    assert evaluator.evaluations == 1


def test_scores_on_request_on_the_device_of_the_victim(preact):
    clean, triggered = CASES.batches()
    evaluator = Evaluator(preact, clean, triggered)
    masks = CASES.random_masks(preact, 3)
    here, there = evaluator.score(masks), evaluator.score(masks, device="meta")
    for name in NAMES:
        assert getattr(here, name).device.type == "cpu" and getattr(there, name).device.type == "meta"
        assert getattr(here, name).shape == getattr(there, name).shape


def test_the_table_of_scored_masks_grows(preact):
    clean, triggered = CASES.batches(9, (5,))
    settings = EvaluatorSettings(precision="float32", tuning=Tuning(table_rows=2))
    evaluator = Evaluator(preact, clean, triggered, settings=settings)
    masks = torch.rand(7, preact.units) > 0.2
    rows = [evaluator.score(masks[:1]), evaluator.score(masks[1:])]
    again = evaluator.score(masks)
    assert torch.equal(again.divergence, torch.cat([row.divergence for row in rows]))
    assert evaluator.evaluations == 7


def test_augmented_batches_have_columns_of_their_own(preact):
    """Agreement on an augmented batch is the ASR of the same images as a family of which every image counts."""
    clean, triggered = CASES.batches()
    augmented = [Batch(torch.randn(n, *preact.input_shape), torch.randint(0, 10, (n,))) for n in (6, 9)]
    as_families = [
        TriggeredBatch(str(n), batch.images, torch.full_like(batch.labels, -1), batch.labels)
        for n, batch in enumerate(augmented)
    ]
    masks = CASES.random_masks(preact, 3)
    scores = Evaluator(preact, clean, triggered, augmented).score(masks)
    whole = Evaluator(preact, clean, [*triggered, *as_families]).score(masks)
    assert torch.equal(torch.cat([scores.asr, scores.agreement], 1), whole.asr)
    assert torch.equal(torch.cat([scores.asr_soft, scores.agreement_soft], 1), whole.asr_soft)
    assert scores.agreement.shape == (3, 2) and scores.asr_count.shape == (3, 2)
    assert torch.equal(scores.acc_count, whole.acc_count) and torch.equal(scores.divergence, whole.divergence)
    wrong = Batch(augmented[0].images, augmented[0].labels + 10)
    with pytest.raises(InputError, match="an augmented batch has classes"):
        Evaluator(preact, clean, triggered, [wrong])


def test_strided_masks(preact):
    clean, triggered = CASES.batches()
    masks = CASES.random_masks(preact, 4)
    strided = masks.t().contiguous().t()
    every_other = torch.stack([masks, ~masks], 2).flatten(1)[:, ::2]
    evaluators = [Evaluator(preact, clean, triggered) for _ in range(3)]
    scores = [e.score(m) for e, m in zip(evaluators, (masks, strided, every_other), strict=True)]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    for other in scores[1:]:
        assert torch.equal(other.acc_count, scores[0].acc_count) and torch.equal(other.asr_count, scores[0].asr_count)


def test_images_of_the_target_class_do_not_count(preact):
    clean, _ = CASES.batches()
    images, labels = torch.randn(10, 3, CASES.SIZE, CASES.SIZE), torch.tensor([3, 3, -1, 0, 1, 2, 3, 4, 5, 3])
    predicted = preact.model(images).argmax(1)
    evaluator = Evaluator(
        preact,
        clean,
        [TriggeredBatch("patch", images, labels, torch.full((10,), 3))],
        settings=EvaluatorSettings(precision="float32"),
    )
    scores = evaluator.score(torch.ones(1, preact.units, dtype=torch.bool))
    assert scores.asr_count[0, 0] == ((predicted == 3) & (labels != 3)).sum()
    assert scores.asr[0, 0] == pytest.approx(int(scores.asr_count[0, 0]) / 6)


def test_without_families_and_with_one_channel():
    def grey() -> nn.Module:
        return build_network("preact_resnet18:width=4,channels=1")

    victim = CASES.lively_victim(grey, channels=1)
    clean, triggered = CASES.batches(channels=1)
    masks = CASES.random_masks(victim, 3)
    scores = Evaluator(victim, clean, triggered, settings=EvaluatorSettings(precision="float32", chunk=9)).score(masks)
    CASES.assert_matches(scores, masks, victim, clean, triggered)
    assert Evaluator(victim, clean, []).score(masks).asr.shape == (3, 0)


def test_missing_backend_says_why(preact):
    clean, triggered = CASES.batches()
    machine = replace(Machine.here(), onednn_problem="this torch was built without oneDNN")
    with pytest.raises(InputError, match="built without oneDNN"):
        Evaluator(preact, clean, triggered, settings=EvaluatorSettings(backend="onednn", machine=machine))
    assert Evaluator(preact, clean, triggered, settings=EvaluatorSettings(machine=machine)).backend == "torch"
    with pytest.raises(InputError, match="not known"):
        Evaluator(preact, clean, triggered, settings=EvaluatorSettings(backend="cudnn"))


def test_bad_batches_and_masks(preact):
    clean, (family, _) = CASES.batches()
    same = TriggeredBatch("same", family.images, family.target, family.target)
    far = TriggeredBatch("far", family.images, family.labels, torch.full_like(family.target, 10))
    small = TriggeredBatch("small", family.images[..., 1:], family.labels, family.target)
    short = TriggeredBatch("short", family.images, family.labels[1:], family.target)
    for bad, words in ((same, "target class"), (far, "0 to 9"), (small, "the network takes"), (short, "labels")):
        with pytest.raises(InputError, match=words):
            Evaluator(preact, clean, [bad])
    with pytest.raises(InputError, match="not all different"):
        Evaluator(preact, clean, [family, family])
    with pytest.raises(InputError, match="clean batch"):
        Evaluator(preact, Batch(clean.images, clean.labels - 11), [family])
    with pytest.raises(InputError, match="chunk"):
        Evaluator(preact, clean, [family], settings=EvaluatorSettings(chunk=0))
    evaluator = Evaluator(preact, clean, [family])
    for masks in (
        torch.ones(1, preact.units),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(preact.units, dtype=torch.bool),
    ):
        with pytest.raises(InputError, match="give bool"):
            evaluator.score(masks)
