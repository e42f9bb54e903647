"""What report.json promises to programs."""

import json
from dataclasses import replace

import pytest

from onp.engine.metrics import Share


def test_the_report_keeps_to_its_schema(outcome, report_schema):
    document = json.loads(outcome.report.to_json())
    report_schema.validate(document)
    assert document["after"]["acc_ci"][0] <= document["after"]["acc"] <= document["after"]["acc_ci"][1]


def test_the_schema_refuses_what_is_missing_unknown_or_no_share(outcome, report_schema):
    document = json.loads(outcome.report.to_json())
    unknown = document | {"verdict": "fine"}
    missing = {key: value for key, value in document.items() if key != "decision"}
    per_cent = document | {"after": document["after"] | {"acc": 91.7}}
    assert not any(report_schema.is_valid(broken) for broken in (unknown, missing, per_cent))


def test_a_share_of_no_images_is_null(outcome, report_schema):
    """Not NaN, which most readers of JSON refuse."""
    after = replace(outcome.report.after, asr=Share(0, 0), ra=Share(0, 0))
    text = replace(outcome.report, after=after).to_json()
    document = json.loads(text, parse_constant=pytest.fail)
    report_schema.validate(document)
    assert document["after"]["asr"] is None and document["after"]["asr_ci"] == [0, 1]
