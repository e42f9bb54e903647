"""What report.json promises to programs, and the layout of the text report."""

import json
from dataclasses import fields, replace
from typing import get_args

import pytest

from onp.defend.decision import DECISIONS
from onp.defend.report import sections
from onp.defend.report.sections import ReferenceSection
from onp.engine.metrics import Share


def test_the_report_keeps_to_its_schema(outcome, report_schema):
    document = json.loads(outcome.report.to_json())
    report_schema.validate(document)
    assert document["after"]["acc_ci"][0] <= document["after"]["acc"] <= document["after"]["acc_ci"][1]


def test_detection_keeps_to_the_schema(outcome, report_schema, detection):
    document = json.loads(replace(outcome.report, detection=detection).to_json())
    report_schema.validate(document)
    assert document["detection"]["anomaly_index"]["patch"] == [5.0, 0.1, 0.2, None], "no number is null"
    assert document["detection"]["surrogates"][0]["bn_match"] is None


def test_the_schema_refuses_what_is_missing_unknown_or_no_share(outcome, report_schema, detection):
    document = json.loads(replace(outcome.report, detection=detection).to_json())
    unknown = document | {"verdict": "fine"}
    missing = {key: value for key, value in document.items() if key != "decision"}
    per_cent = document | {"after": document["after"] | {"acc": 91.7}}
    renamed = document | {"detection": document["detection"] | {"suspicion": []}}
    assert not any(report_schema.is_valid(broken) for broken in (unknown, missing, per_cent, renamed))


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("model", sections.ModelSection),
        ("data", sections.DataSection),
        ("detection", sections.DetectionSection),
        ("budget", sections.BudgetSection),
        ("clean_reference", sections.ReferenceSection),
        ("provenance", sections.Provenance),
    ],
)
def test_the_schema_knows_every_field(report_schema, key, section):
    known = report_schema.schema["properties"][key]
    names = [field.name for field in fields(section)]
    assert sorted(known["properties"]) == sorted(known["required"]) == sorted(names)


def test_a_share_of_no_images_is_null(outcome, report_schema):
    """Not NaN, which most readers of JSON refuse."""
    after = replace(outcome.report.after, asr=Share(0, 0), ra=Share(0, 0))
    text = replace(outcome.report, after=after).to_json()
    document = json.loads(text, parse_constant=pytest.fail)
    report_schema.validate(document)
    assert document["after"]["asr"] is None and document["after"]["asr_ci"] == [0, 1]


def test_columns_of_the_text_are_apart_however_long_a_name_is(outcome):
    name = "perturbation to a class with a long name"
    surrogate = {name: Share(100, 100)}
    report = outcome.report
    before, pruning, after = (replace(each, asr_surrogate=surrogate) for each in (report.before, report.pruning, report.after))
    lines = replace(report, before=before, pruning=pruning, after=after).to_text().splitlines()
    first, second = f"surrogate ASR, {name}", f"surrogate ASR, {name}  100.0 % [96.4, 100.0]"
    rows = [line for line in lines[1:] if "%" in line]
    assert any(line.startswith(second) for line in rows)
    for line in rows:
        assert line[len(first) :].startswith("  ") and line[len(second) :].startswith("  "), line


def test_where_nothing_was_pruned_the_text_has_one_column_and_nothing_about_masks(outcome):
    report = outcome.report
    budget = replace(report.budget, evaluations=0, masks_per_second=0.0)
    nothing = {"decision": "no-backdoor-evidence", "after": report.before, "pruning": None, "pruned": {}, "budget": budget}
    text = replace(report, headline="No evidence.", next_steps=("Use it.",), **nothing).to_text()
    assert "\nWhat to do next:\n- Use it.\n" in text
    assert "before" not in text and "Pruned" not in text and "masks" not in text and "DER" not in text
    (acc,) = [line for line in text.splitlines() if line.startswith("ACC")]
    assert acc.count("%") == 1


def test_the_headline_is_the_first_line_and_a_value(outcome):
    report = replace(outcome.report, headline="Evidence of a backdoor; 6 units pruned.")
    assert report.to_text().splitlines()[:2] == ["Evidence of a backdoor; 6 units pruned.", "Decision: repaired"]
    document = json.loads(report.to_json())
    assert document["headline"] == "Evidence of a backdoor; 6 units pruned." and document["task"] == "defend"
    assert document["next_steps"] == list(report.next_steps) != []


def test_a_column_says_what_clean_networks_show_where_that_was_measured(outcome, report_schema):
    (name,) = outcome.report.before.asr_surrogate
    measured = replace(outcome.report, clean_reference=ReferenceSection(30, "test", {name: 0.305}))
    report_schema.validate(json.loads(measured.to_json()))
    lines = measured.to_text().splitlines()
    assert any(line.split() == ["before", "pruned", "healed", "a", "clean", "network"] for line in lines)
    assert [line for line in lines if line.endswith("  up to 30.5 %")] == [
        line for line in lines if line.startswith("ASR, known")
    ]
    nothing = replace(measured, decision="backdoor-evidence", after=measured.before, pruning=None, pruned={})
    assert any(line.endswith("  up to 30.5 %") for line in nothing.to_text().splitlines())
    unknown = replace(measured, clean_reference=ReferenceSection(0, "none", {name: None}))
    assert "a clean network" not in unknown.to_text()


@pytest.mark.parametrize("decision", DECISIONS)
def test_the_schema_knows_every_decision(outcome, report_schema, decision):
    report_schema.validate(json.loads(replace(outcome.report, decision=decision).to_json()))
    assert set(report_schema.schema["properties"]["decision"]["enum"]) == set(DECISIONS)
    assert set(report_schema.schema["properties"]["task"]["enum"]) == set(get_args(sections.Task))


def test_the_text_shows_no_control_characters_of_names(outcome):
    """A class or layer whose name moves the cursor, or turns the direction of the text."""
    hostile = "a\x1b]0;title\x07\nb\u202ec"
    text = replace(outcome.report, reason=hostile, headline=hostile, pruned={hostile: [1]}).to_text()
    assert text.count(r"a\x1b]0;title\x07") == 3 and r"\nb\u202ec: 1" in text
    assert all(each.isprintable() for line in text.splitlines() for each in line)
