"""The in-toto statement: valid by the official package, about the checkpoints, with the digest of the report."""

import hashlib
import json
from dataclasses import replace

import pytest
from helpers.reports import DATA, ORIGINAL, REPAIRED, repaired_report

from onp.defend.report.statement import PREDICATE, statement_of


@pytest.fixture
def report():
    """A repair whose files have digests."""
    return repaired_report()


def official(text):
    """The statement as the official package reads it: unknown fields and missing parts are errors."""
    statement = pytest.importorskip("in_toto_attestation.v1.statement")
    from google.protobuf import json_format

    found = statement.Statement([], "", {})
    found.pb.Clear()
    json_format.Parse(text, found.pb)
    found.validate()
    return found.pb


def test_it_is_valid_and_about_both_checkpoints(report):
    text = statement_of(report, {"report.json": "{}"})
    found = official(text)
    assert [(each.name, dict(each.digest)) for each in found.subject] == [
        ("net one.pt", {"sha256": ORIGINAL.sha256}), ("repaired/net one.pt", {"sha256": REPAIRED.sha256})
    ]  # fmt: skip
    assert found.predicate_type == PREDICATE
    document = json.loads(text)
    assert document["predicate"]["probability"] == report.detection.probability
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    predicate = document["predicate"]
    assert predicate["reports"] == [{"name": "report.json", "digest": {"sha256": hashlib.sha256(b"{}").hexdigest()}}]
    assert predicate["decision"] == report.decision and predicate["learned"] == {"clean_reference.json": "1"}
    assert predicate["figures"]["ACC, clean images"]["after"]["value"] == report.after.acc.value
    assert [each["sha256"] for each in predicate["inputs"]] == [ORIGINAL.sha256, DATA.sha256]


def test_a_scan_is_about_the_original_alone(report):
    made = replace(report.provenance, outputs=())
    found = official(statement_of(replace(report, decision="backdoor-evidence", pruned={}, provenance=made), {}))
    assert [each.name for each in found.subject] == ["net one.pt"]


def test_a_network_in_memory_has_none(report):
    assert statement_of(replace(report, provenance=None), {}) is None
    assert statement_of(replace(report, provenance=replace(report.provenance, inputs=(DATA,), outputs=())), {}) is None
