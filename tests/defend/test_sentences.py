"""The prose of a report: which facts it states."""

from types import SimpleNamespace

import pytest
import torch

from onp.data.images import ImageSet
from onp.defend.report.sentences import notes, reason
from onp.detect.anomaly import DetectionScores
from onp.detect.config import DetectConfig
from onp.detect.targets import Detection
from onp.model.mask import Mask

IMAGES = ImageSet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("eel", "dog", "cat", "ant"))


def scores(*values):
    return DetectionScores({}, {}, values)


def detection(first, second=None):
    return Detection(scores(*first), None if second is None else scores(*second), DetectConfig())


def repair(target, works=True, required=None):
    outcome = SimpleNamespace(acceptable=torch.tensor([works]), asr=torch.tensor([0.0 if works else 0.9]))
    search = SimpleNamespace(outcome=outcome, works=works, required_budget=required)
    return SimpleNamespace(target=target, search=search)


def repairs(*each, asked=()):
    keep = torch.ones(72, dtype=torch.bool)
    keep[:3] = False
    mask = Mask(keep, (("first", 72),))
    return SimpleNamespace(repairs=each, scores_after=asked, mask=mask, works=all(one.search.works for one in each))


def test_no_class_above_the_threshold():
    sentence = reason(detection((0.0, 3.2, 0.0, 1.0)), None, IMAGES, 0.01)
    assert "threshold of 4" in sentence and "3.2, of class dog" in sentence and "was not changed" in sentence


def test_one_target():
    sentence = reason(detection((9.0, 3.2, 0.0, 1.0)), repairs(repair(0)), IMAGES, 0.01)
    assert sentence.startswith("Class eel was detected") and "score 9.0, threshold 4" in sentence and "3 units were" in sentence


def test_several_targets_and_what_their_repairs_left():
    found = detection((6.0, 4.9, 5.5, 0.0), (6.0, 5.0, 5.5, 5.4))
    both = repairs(repair(0), repair(2), asked=(scores(6.0, 0.3, 4.2, 5.0),))
    assert "eel (6.0), cat (5.5)" in reason(found, both, IMAGES, 0.01)
    first, second = notes(found, both, IMAGES)
    assert "eel (6.0), cat (5.5), dog (4.9) have similar scores" in first and first.endswith("eel (6.0), cat (5.5), dog (5.0).")
    assert second == "Scores on the network repaired for class eel: cat (4.2), dog (0.3); cat was repaired next."


def test_a_narrow_detection_that_a_second_pass_does_not_confirm():
    (note,) = notes(detection((0.0, 4.6, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0)), None, IMAGES)
    assert "dog (4.6) is close to the threshold" in note and note.endswith("dog (1.0).")


def test_another_class_far_below_the_target():
    found = detection((9.0, 4.6, 0.0, 0.0))
    (note,) = notes(found, repairs(repair(0)), IMAGES)
    assert "dog (4.6)" in note and notes(found, repairs(repair(0, works=False)), IMAGES) == ()


def test_a_known_trigger():
    found = repairs(repair(3))
    assert reason(None, found, IMAGES, 0.01).startswith("The given trigger leads to class ant; 3 units")
    assert notes(None, found, IMAGES) == ()


def test_what_one_class_leaves_unrepaired():
    sentence = reason(detection((6.0, 4.9, 5.5, 0.0), (6.0, 5.0, 5.5, 0.0)), repairs(repair(0), repair(2, False)), IMAGES, 0.01)
    assert "A mask was found for class eel, but none for class cat" in sentence and "90 %" in sentence


@pytest.mark.parametrize(("required", "advice"), [(0.0231, 0.025), (0.025, 0.025), (0.004, None), (None, None), (0.999, None)])
def test_a_refusal_names_the_budget_that_would_have_sufficed(required, advice):
    sentence = reason(detection((6.0, 0.0, 0.0, 0.0)), repairs(repair(0, False, required)), IMAGES, 0.01)
    assert ("--max-acc-drop" in sentence) is (advice is not None)
    assert advice is None or f" --max-acc-drop {advice} would allow a mask" in sentence
