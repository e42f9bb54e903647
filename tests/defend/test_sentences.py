"""The prose of a report: which facts it states."""

import pytest
from helpers.made_findings import detection, figures, findings, images, mask, repair, repairs, scores

from onp.defend.config import DefendConfig
from onp.defend.decision import DECISIONS
from onp.defend.report.advice import NEXT_STEPS, next_steps
from onp.defend.report.sentences import headline, highest_score, notes, reason, surviving_families

IMAGES, CONFIG = images(), DefendConfig()
NOTHING = detection((0.0, 3.2, 0.0, 1.0))


def reason_of(decision, found, made, before=None, config=CONFIG):
    return reason(findings(decision, before or figures({}), detection=found, repairs=made), IMAGES, config)


def test_no_class_above_the_threshold():
    sentence = reason_of("no-backdoor-evidence", NOTHING, None)
    assert "threshold of 4" in sentence and "3.2, of class dog" in sentence and "was not changed" in sentence
    assert "close to it" not in sentence
    assert "close to it" in reason_of("inconclusive", NOTHING, None)
    assert highest_score(NOTHING, IMAGES) == "Class dog has the highest detection score, 3.2; the threshold is 4."


def test_one_target():
    sentence = reason_of("repaired", detection((9.0, 3.2, 0.0, 1.0)), repairs(repair(0)))
    assert sentence.startswith("Class eel was detected") and "score 9.0, threshold 4" in sentence and "3 units were" in sentence


def test_several_targets_and_what_their_repairs_left():
    found = detection((6.0, 4.9, 5.5, 0.0), (6.0, 5.0, 5.5, 5.4))
    both = repairs(repair(0), repair(2), asked=(scores(6.0, 0.3, 4.2, 5.0),))
    assert "eel (6.0), cat (5.5)" in reason_of("repaired", found, both)
    first, second = notes(found, both, IMAGES)
    assert "eel (6.0), cat (5.5), dog (4.9) have similar scores" in first and first.endswith("eel (6.0), cat (5.5), dog (5.0).")
    assert second == "Scores on the network repaired for class eel: cat (4.2), dog (0.3); cat was repaired next."


def test_a_narrow_detection_that_a_second_pass_does_not_confirm():
    (note,) = notes(detection((0.0, 4.6, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0)), None, IMAGES)
    assert "dog (4.6) is close to the threshold" in note and note.endswith("dog (1.0).")


def test_another_class_far_below_the_target():
    """Why a class over the line is left alone is said, since a page draws it over the line."""
    found = detection((9.0, 4.6, 0.0, 0.0))
    (note,) = notes(found, repairs(repair(0)), IMAGES)
    assert "dog (4.6)" in note and "more than 3 below class eel" in note
    assert notes(found, repairs(repair(0, works=False)), IMAGES) == ()


def test_a_known_trigger():
    found = repairs(repair(3))
    assert reason_of("repaired", None, found).startswith("The given trigger leads to class ant; 3 units")
    assert notes(None, found, IMAGES) == ()


def test_what_one_class_leaves_unrepaired():
    found = detection((6.0, 4.9, 5.5, 0.0), (6.0, 5.0, 5.5, 0.0))
    sentence = reason_of("not-repairable", found, repairs(repair(0), repair(2, False)))
    assert "A mask was found for class eel, but none for class cat" in sentence and "90 %" in sentence


@pytest.mark.parametrize(("required", "advice"), [(0.0231, 0.025), (0.025, 0.025), (0.004, None), (None, None), (0.999, None)])
def test_a_refusal_names_the_budget_that_would_have_sufficed(required, advice):
    sentence = reason_of("not-repairable", detection((6.0, 0.0, 0.0, 0.0)), repairs(repair(0, False, required)))
    assert ("--max-acc-drop" in sentence) is (advice is not None)
    assert advice is None or f" --max-acc-drop {advice} would allow a mask" in sentence


def test_few_images_are_counted_and_a_scan_is_not():
    found = findings("backdoor-evidence", figures({"patch": 98}))
    sentence = reason(found, images(32), CONFIG)
    assert "needs 50 clean images and 32 were given, 18 too few" in sentence and "--force" in sentence
    scan = reason(found, images(32), DefendConfig(repair=False))
    assert scan == "Class eel was detected as the target of a backdoor (score 5.0, threshold 4). The model was not changed."


def test_what_survives_is_named():
    left = figures({"patch": 53, "warp": 40})
    found = findings("partly-repaired", figures({"patch": 98, "warp": 98}), left, repairs=repairs(repair(0)), mask=mask(40))
    assert headline(found, IMAGES) == (
        "Evidence of a backdoor; 40 units pruned; patch triggers still reach 53.0 %, "
        "of clean networks 19 in 20 stay below 20.0 %."
    )
    (survivor,) = found.survivors
    sentence = surviving_families([survivor])
    assert sentence.endswith("still reach more than on clean networks: patch 53.0 % (19 in 20 clean networks: below 20.0 %).")
    assert reason(found, IMAGES, CONFIG).endswith(sentence)


def test_headlines_say_what_was_measured():
    repaired = findings("repaired", figures({"patch": 98, "warp": 90}), figures({"patch": 3, "warp": 12}), mask=mask(40))
    known = findings("repaired", figures({"known": 98}), figures({"known": 1}), mask=mask(1), detection=None)
    refused, scanned = (findings(decision, figures({"patch": 98})) for decision in ("not-repairable", "backdoor-evidence"))
    clean, unsure = (findings(name, figures({}), detection=NOTHING) for name in ("no-backdoor-evidence", "inconclusive"))
    assert [headline(found, IMAGES) for found in (repaired, known, refused, scanned, clean, unsure)] == [
        "Evidence of a backdoor; 40 units pruned; the strongest surrogate trigger still reaches 12.0 %.",
        "Evidence of a backdoor; 1 unit pruned; the given trigger still reaches 1.0 %.",
        "Evidence of a backdoor; no mask within the accuracy budget removes it, and nothing was changed.",
        "Evidence of a backdoor; the highest detection score is 5.0, the threshold 4; nothing was changed.",
        "No evidence of a backdoor was found; the highest detection score is 3.2, the threshold 4.",
        "Inconclusive; the highest detection score, 3.2, is close to the threshold of 4.",
    ]


@pytest.mark.parametrize("decision", ["no-backdoor-evidence", "inconclusive"])
def test_a_missed_trigger_comes_first(decision):
    found = findings(decision, figures({}, true=88), detection=NOTHING)
    text = headline(found, IMAGES)
    assert text.startswith("The scan missed a trigger that works on 88.0 % of the images")
    assert "--trigger" in text and "--triggered-data" in text and "--triggered-data" in next_steps(found, CONFIG)[0]
    weak = findings(decision, figures({}, true=19), detection=NOTHING)
    assert "missed" not in headline(weak, IMAGES) and next_steps(weak, CONFIG) == NEXT_STEPS[decision]


def test_a_trigger_that_outlives_the_repair_is_in_the_headline():
    found = findings("repaired", figures({"patch": 98}, 97), figures({"patch": 3}, 90), mask=mask(40))
    assert headline(found, IMAGES).endswith("; the trigger given for measuring still works on 90.0 % of the images.")


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_decision_says_what_to_do(decision):
    steps = next_steps(findings(decision, figures({})), CONFIG)
    assert steps and all(step.endswith(".") for step in steps)
    if decision in ("repaired", "partly-repaired"):
        assert any("onp verify" in step for step in steps), "and not a second scan"
    if decision not in ("no-backdoor-evidence", "inconclusive"):
        assert any("deploy" in step or "efore you use" in step for step in steps)
        assert any("tell whoever supplied" in step for step in steps)


def test_with_few_images_the_advice_is_more_of_them():
    found = findings("backdoor-evidence", figures({}))
    assert "Give 50 clean images or more" in next_steps(found, CONFIG)[1]
    assert "onp defend" in next_steps(found, DefendConfig(repair=False))[1]
