"""Which decision a run comes to."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from helpers.made_findings import REFERENCE, audit, detection, figures, findings, images, repair, repairs

from onp.data.images import ImageSet, Splits
from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.evaluation import Evaluation, TrueImages
from onp.defend.outputs import write_outputs
from onp.defend.report.sections import Tuned
from onp.defend.run import Run
from onp.defend.verdict import Survivor, decide, is_to_repair, missed, survivors
from onp.detect.known_trigger import KnownTrigger
from onp.engine.metrics import Share

STRONG, WEAK = figures({"patch": 98, "warp": 97}), figures({"patch": 20, "warp": 50})
DETECTED = detection((0.98, 0.01, 0.0, 0.0))


@pytest.mark.parametrize(
    ("probability", "decision"),
    [(0.19, "no-backdoor-evidence"), (0.21, "inconclusive"), (0.79, "inconclusive"), (0.81, "backdoor-evidence")],
)
def test_a_probability_between_the_thresholds_is_inconclusive(probability, decision):
    assert decide(detection((0.0, probability, 0.0, 0.0)), None, audit(figures({}), targets=())) == decision


def test_both_passes_decide():
    unconfirmed = detection((0.0, 0.7, 0.0, 0.0), (0.0, 0.3, 0.0, 0.0))
    assert decide(unconfirmed, None, audit(figures({}), targets=())) == "inconclusive"


def test_a_repair_that_leaves_triggers_working_is_a_partial_one():
    assert decide(DETECTED, repairs(repair(0)), audit(STRONG, WEAK), reference=REFERENCE) == "repaired"
    more = figures({"patch": 3, "warp": 51})
    assert decide(DETECTED, repairs(repair(0)), audit(STRONG, more), reference=REFERENCE) == "partly-repaired"
    assert decide(DETECTED, repairs(repair(0, works=False)), audit(STRONG), reference=REFERENCE) == "not-repairable"
    assert decide(DETECTED, repairs(repair(0), repair(2, works=False)), audit(STRONG)) == "not-repairable"


def test_a_family_that_was_not_measured_on_clean_networks_has_no_bar():
    left = audit(figures({"smooth": 90}), figures({"smooth": 80}))
    assert decide(DETECTED, repairs(repair(0)), left, reference=REFERENCE) == "repaired"


def test_what_counts_is_the_network_that_is_written():
    again, none = Tuned("ft", figures({"patch": 90, "warp": 0}), None), Tuned("ft", figures({"patch": 1, "warp": 0}), None)
    left = audit(STRONG, figures({"patch": 40, "warp": 0}))
    assert decide(DETECTED, repairs(repair(0)), audit(STRONG, WEAK), again, REFERENCE) == "partly-repaired"
    assert decide(DETECTED, repairs(repair(0)), left, none, REFERENCE) == "repaired"


def test_with_several_targets_the_family_counts_and_not_its_name():
    """Class names may end like anything."""
    names = {"patch to warp": 98, "patch to b": 98}
    data = audit(figures(names), targets=((0, "warp"), (1, "b"))).data
    left = figures({"patch to warp": 30, "patch to b": 45})
    worst, other = survivors(left, data, REFERENCE)
    assert worst == Survivor("patch to b", Share(45, 100), 0.2) and other.name == "patch to warp" and other.clean == 0.2


@pytest.mark.parametrize("true", [None, 0, 100])
def test_the_true_trigger_has_no_say(true):
    before, after = figures({"patch": 98}, true), figures({"patch": 3}, true)
    nothing = detection((0.0, 0.1, 0.0, 0.0))
    assert decide(nothing, None, audit(before)) == "no-backdoor-evidence"
    assert decide(DETECTED, repairs(repair(0)), audit(before, after), reference=REFERENCE) == "repaired"


def test_a_true_trigger_that_works_where_nothing_was_found_was_missed():
    works, fails = figures({}, 88), figures({}, 19)
    for decision in ("no-backdoor-evidence", "inconclusive"):
        assert missed(decision, works) == Share(88, 100) and findings(decision, works).missed == Share(88, 100)
        assert missed(decision, fails) is missed(decision, figures({})) is None
    assert missed("repaired", works) is missed("backdoor-evidence", works) is None


def test_a_given_trigger_that_is_only_measured_is_evidence_where_it_works():
    assert decide(None, None, audit(figures({"known": 20}))) == "backdoor-evidence"
    assert decide(None, None, audit(figures({"known": 19}))) == "no-backdoor-evidence"


def test_nothing_is_repaired_from_few_images():
    few, enough = (SimpleNamespace(images=images(count)) for count in (49, 50))
    assert not is_to_repair(few, DefendConfig()) and is_to_repair(few, DefendConfig(force=True))
    assert is_to_repair(enough, DefendConfig()) and not is_to_repair(enough, DefendConfig(repair=False))


@pytest.fixture(scope="module")
def few(small, backdoored):
    """The tiny victim with 45 images and its trigger."""
    case = small.case(backdoored.victim)
    build, score, holdout = (part.subset(range(15)) for part in (case.clean.build, case.clean.score, case.clean.holdout))
    return replace(case, clean=Splits(build, score, holdout))


@pytest.mark.parametrize(("options", "task"), [({}, "defend"), ({"repair": False}, "scan")])
def test_without_a_repair_the_network_is_as_given(small, few, backdoored, options, task, report_schema):
    case = few if task == "defend" else small.case(backdoored.victim)
    outcome = run_pipeline(case, Run(DefendConfig(quiet=True, **options), small.PRESET))
    report = outcome.report
    assert report.decision == "backdoor-evidence" and report.task == task and report.target_classes == (0,)
    assert outcome.victim is case.victim and report.pruned_count == 0 and bool(outcome.mask.keep.all())
    assert report.before.asr_surrogate["known"].value > 0.8
    said = "5 too few" in report.reason and "--force" in report.reason
    assert said is (task == "defend")


def test_few_images_are_enough_where_that_is_asked_for(small, few):
    impatient = replace(
        small.PRESET, search=replace(small.PRESET.search, method=replace(small.PRESET.search.method, max_evaluations=8))
    )
    report = run_pipeline(few, Run(DefendConfig(quiet=True, force=True), impatient)).report
    assert report.decision in ("repaired", "partly-repaired", "not-repairable") and report.budget.evaluations


@dataclass(frozen=True)
class Nothing:
    """A trigger that changes no image."""

    name: str = "nothing"
    all_to_all: bool = False

    def __call__(self, pixels):
        return pixels


def test_the_report_says_first_that_a_trigger_was_missed(small, backdoored, report_schema):
    """Of a network whose backdoor the scan, here a trigger without effect, does not find."""
    case = small.case(backdoored.victim)
    holdout = case.clean.holdout
    stamped = ImageSet((small.stamp(holdout.pixels()) * 255).round().byte(), holdout.labels, holdout.class_names)
    evaluation = Evaluation(None, TrueImages(stamped, 0))
    missed_one = replace(case, known_trigger=KnownTrigger(Nothing(), 0), evaluation=evaluation)
    outcome = run_pipeline(missed_one, Run(DefendConfig(repair=False, quiet=True), small.PRESET))
    report = outcome.report
    assert report.decision == "no-backdoor-evidence" and report.before.asr.value > 0.8 and report.missed
    first = f"The scan missed a trigger that works on {100 * report.before.asr.value:.1f} % of the images"
    assert report.headline.startswith(first) and report.to_text().startswith(first)
    document = json.loads(report.to_json())
    report_schema.validate(document)
    assert document["headline"] == report.headline and "found no class" in document["warning"]
    assert '<body style="--verdict: var(--bad)">' in outcome.html()


def test_a_partial_repair_is_written(outcome, tmp_path):
    partly = replace(outcome, report=replace(outcome.report, decision="partly-repaired"))
    write_outputs(partly, str(tmp_path))
    assert (tmp_path / "mask.json").exists() and (tmp_path / "model_card.md").exists()
    refused = replace(outcome, report=replace(outcome.report, decision="backdoor-evidence"))
    write_outputs(refused, str(tmp_path / "scan"))
    assert not (tmp_path / "scan" / "mask.json").exists() and (tmp_path / "scan" / "report.json").exists()
