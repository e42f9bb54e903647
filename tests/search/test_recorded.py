"""Scores that a resumed run reads instead of computing them again."""

import json
from dataclasses import fields

import pytest
import torch

from onp.engine.evaluator import Evaluator, Scores
from onp.engine.mask_table import mask_keys
from onp.engine.scoring import Batch
from onp.errors import InputError
from onp.resume import Store
from onp.search.recorded import RecordedEvaluator


def evaluator_of(b) -> Evaluator:
    return Evaluator(b.victim, b.score, b.score_triggered, [Batch(b.build.images[:20], b.build.labels[:20])])


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.begin({})
    return store


def test_scores_are_read_bit_by_bit(backdoored, store, rng):
    masks = torch.rand((7, backdoored.victim.units), generator=rng) < 0.9
    expected = RecordedEvaluator(evaluator_of(backdoored), store, "scores").score(masks)
    # A line of an older version, and one that was cut off by a kill.
    store.append("scores.jsonl", json.dumps({"masks": [mask_keys(masks[:1])[0].hex()], "scores": [{"acc": 7.0}]}))
    with (store.folder / "scores.jsonl").open("a") as file:
        file.write('{"masks": ["00')
    inner = evaluator_of(backdoored)
    again = RecordedEvaluator(inner, store, "scores")
    scores = again.score(masks)
    assert inner.evaluations == again.evaluations == 0
    for field in fields(Scores):
        assert torch.equal(getattr(scores, field.name), getattr(expected, field.name)), field.name
    again.commit(masks[0])
    other = ~masks[:1]
    more = again.score(torch.cat((masks[:2], other)))
    assert inner.evaluations == 1 and torch.equal(more.asr[:2], expected.asr[:2])
    torch.testing.assert_close(more.divergence[2:], evaluator_of(backdoored).score(other).divergence)
    assert len((store.folder / "scores.jsonl").read_text().splitlines()) == 3


def test_the_seconds_of_earlier_runs_count(backdoored, store, rng):
    masks = torch.rand((5, backdoored.victim.units), generator=rng) < 0.9
    first = RecordedEvaluator(evaluator_of(backdoored), store, "scores")
    first.score(masks)
    again = RecordedEvaluator(evaluator_of(backdoored), store, "scores")
    again.score(masks)
    assert again.seconds == pytest.approx(first.seconds) and again.seconds > 0


def test_a_damaged_line_is_one_sentence(backdoored, store):
    store.append("scores.jsonl", json.dumps({"masks": ["00"], "scores": []}))
    with pytest.raises(InputError, match="damaged"):
        RecordedEvaluator(evaluator_of(backdoored), store, "scores")
