"""The prose of a report: which facts it states."""

import pytest
from helpers.made_findings import detection, figures, findings, images, mask, repair, repairs
from helpers.made_verdict import made_pass

from onp.defend.config import DefendConfig
from onp.defend.decision import DECISIONS
from onp.defend.report.advice import NEXT_STEPS, next_steps
from onp.defend.report.probabilities import in_words
from onp.defend.report.sentences import headline, most_probable, notes, reason, surviving_families

IMAGES, CONFIG = images(), DefendConfig()
NOTHING = detection((0.0, 0.1, 0.0, 0.02))
UNSURE = detection((0.0, 0.4, 0.0, 0.02))


def reason_of(decision, found, made, before=None, config=CONFIG):
    return reason(findings(decision, before or figures({}), detection=found, repairs=made), IMAGES, config)


def test_no_backdoor():
    sentence = reason_of("no-backdoor-evidence", NOTHING, None)
    assert "The probability of a backdoor is 11.8 %, below 20 %" in sentence and "was not changed" in sentence
    assert "class dog (10 %)" in sentence and "between" not in sentence
    unsure = reason_of("inconclusive", UNSURE, None)
    assert "between 20 % and 80 %" in unsure and "Other seeds or images" in unsure
    assert most_probable(NOTHING, IMAGES) == (
        "The probability of a backdoor is 11.8 %; class dog is its most probable target (10 %)."
    )


def test_one_target():
    sentence = reason_of("repaired", detection((0.95, 0.03, 0.0, 0.01)), repairs(repair(0)))
    assert sentence.startswith("Class eel was detected") and "(probability 95 %, from patch +4.0, latent +1.5" in sentence
    assert "3 units were" in sentence


def test_several_targets_and_what_their_repairs_left():
    found = detection((0.99, 0.5, 0.9, 0.0), (0.99, 0.95, 0.9, 0.0))
    both = repairs(repair(0), repair(2), after=(made_pass(0.99, 0.03, 0.85, 0.9),))
    first, cat = (in_words(found.probabilities.per_class[k]) for k in (0, 2))
    assert found.targets == (0, 2) and f"eel ({first}), cat ({cat})" in reason_of("repaired", found, both)
    first, second = notes(found, both, IMAGES)
    assert "left open which classes are targets" in first and "dog 50 %, then 95 %" in first
    assert second == "On the network repaired for class eel: cat (85 %); cat was repaired next."


def test_a_detection_that_a_second_pass_does_not_confirm():
    (note,) = notes(detection((0.0, 0.6, 0.0, 0.0), (0.0, 0.05, 0.0, 0.0)), None, IMAGES)
    assert "the first pass was inconclusive" in note and "of a backdoor was 60 %, then 5 %." in note
    assert "dog 60 %, then 5 %" in note
    assert notes(detection((0.97, 0.6, 0.0, 0.0)), repairs(repair(0)), IMAGES) == (), "one pass"
    (note,) = notes(detection((0.0, 0.6, 0.0, 0.0), (0.0, 0.05, 0.0, 0.0), (0.0, 0.3, 0.0, 0.0)), None, IMAGES)
    assert "of a backdoor was 60 %, then 5 %, then 30 %." in note


def test_a_known_trigger():
    found = repairs(repair(3))
    assert reason_of("repaired", None, found).startswith("The given trigger leads to class ant; 3 units")
    assert notes(None, found, IMAGES) == ()


def test_what_one_class_leaves_unrepaired():
    found = detection((0.99, 0.1, 0.9, 0.0), (0.99, 0.1, 0.9, 0.0))
    sentence = reason_of("not-repairable", found, repairs(repair(0), repair(2, False)))
    assert "A mask was found for class eel, but none for class cat" in sentence and "90 %" in sentence


@pytest.mark.parametrize(("required", "advice"), [(0.0231, 0.025), (0.025, 0.025), (0.004, None), (None, None), (0.999, None)])
def test_a_refusal_names_the_budget_that_would_have_sufficed(required, advice):
    sentence = reason_of("not-repairable", detection((0.98, 0.0, 0.0, 0.0)), repairs(repair(0, False, required)))
    assert ("--max-acc-drop" in sentence) is (advice is not None)
    assert advice is None or f" --max-acc-drop {advice} would allow a mask" in sentence


def test_few_images_are_counted_and_a_scan_is_not():
    found = findings("backdoor-evidence", figures({"patch": 98}))
    sentence = reason(found, images(32), CONFIG)
    assert "needs 50 clean images and 32 were given, 18 too few" in sentence and "--force" in sentence
    scan = reason(found, images(32), DefendConfig(repair=False))
    assert scan.startswith("Class eel was detected as the target of a backdoor (probability 98 %, from patch +4.0")
    assert scan.endswith("in log odds). The model was not changed.")


def test_what_survives_is_named():
    left = figures({"patch": 53, "warp": 40})
    found = findings("partly-repaired", figures({"patch": 98, "warp": 98}), left, repairs=repairs(repair(0)), mask=mask(40))
    assert headline(found, IMAGES) == (
        "Evidence of a backdoor (probability 98 %); 40 units pruned; patch triggers still reach 53.0 %, "
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
    clean = findings("no-backdoor-evidence", figures({}), detection=NOTHING)
    unsure = findings("inconclusive", figures({}), detection=UNSURE)
    assert [headline(found, IMAGES) for found in (repaired, known, refused, scanned, clean, unsure)] == [
        "Evidence of a backdoor (probability 98 %); 40 units pruned; the strongest surrogate trigger still reaches 12.0 %.",
        "Evidence of a backdoor; 1 unit pruned; the given trigger still reaches 1.0 %.",
        "Evidence of a backdoor (probability 98 %); no mask within the accuracy budget removes it, and nothing was changed.",
        "Evidence of a backdoor (probability 98 %); nothing was changed.",
        "No evidence of a backdoor was found; its probability is 11.8 %.",
        "Inconclusive; the probability of a backdoor is 41.2 %.",
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
