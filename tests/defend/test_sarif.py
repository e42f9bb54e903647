"""SARIF: valid by the official schema, one rule a finding, names without folders, fingerprints that stay."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.reports import ORIGINAL, figures, repaired_report

from onp.defend.decision import DECISIONS, exit_code
from onp.defend.report.sarif import entry_of, entry_of_refusal, sarif_log, sarif_of, sarif_of_refusal
from onp.defend.report.sarif_rules import RULE_OF, RULES, TAXA
from onp.errors import UnsafeCheckpointError

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "sarif-schema-2.1.0.json").read_text())
REFUSED = UnsafeCheckpointError("/home/me/models/bad.pt holds pickled Python objects; re-save only its weights.")


@pytest.fixture(scope="module")
def check():
    """Parses a log; raises `jsonschema.ValidationError` where it breaks the schema."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.validators.validator_for(SCHEMA)(SCHEMA, format_checker=jsonschema.FormatChecker())

    def parsed(text):
        document = json.loads(text)
        validator.validate(document)
        (run,) = document["runs"]
        return run

    return parsed


@pytest.fixture
def report():
    """A repair, with the digest of its checkpoint."""
    return repaired_report()


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_decision_is_valid_and_has_the_exit_code_of_the_command(report, check, decision):
    report = replace(report, decision=decision, before=figures(95, 90, 80, 0))
    run = check(sarif_of(report))
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == exit_code(decision) and invocation["executionSuccessful"]
    assert invocation["endTimeUtc"] == "2026-11-29T10:00:00Z"
    assert [result["ruleId"] for result in run["results"]] == ([RULE_OF[decision]] if decision in RULE_OF else [])
    if decision == "inconclusive":
        assert run["results"][0]["level"] == "note"
    never = replace(report, config=replace(report.config, fail_on="never"))
    assert check(sarif_of(never))["invocations"][0]["exitCode"] == 0


def test_a_finding_names_checkpoint_units_and_figures(report, check):
    run = check(sarif_of(report))
    (artifact,), (result,) = run["artifacts"], run["results"]
    assert artifact["location"]["uri"] == "net%20one.pt" and artifact["hashes"] == {"sha-256": ORIGINAL.sha256}
    assert artifact["length"] == 1234
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "net%20one.pt", "index": 0}
    found = [each["fullyQualifiedName"] for each in location["logicalLocations"]]
    assert found == [f"{layer}[{unit}]" for layer, units in report.pruned.items() for unit in units] and found
    properties = result["properties"]
    assert properties["before"]["acc"]["value"] == report.before.acc.value
    assert len(properties["after"]) == 1 + len(report.after.asr_surrogate)
    assert report.headline in result["message"]["text"] and report.reason in result["message"]["text"]


def test_a_fingerprint_follows_the_checkpoint_and_the_rule(report):
    def fingerprint(report):
        return entry_of(report).result["partialFingerprints"]["checkpointAndRule/v1"]

    first = fingerprint(report)
    assert first == fingerprint(replace(report, reason="Another seed.", target_classes=(2,), pruned={}))
    assert first != fingerprint(replace(report, decision="not-repairable"))
    moved = replace(report.provenance, inputs=(replace(ORIGINAL, name="moved.pt"),))
    assert first == fingerprint(replace(report, provenance=moved))
    changed = replace(report.provenance, inputs=(replace(ORIGINAL, sha256="cd" * 32),))
    assert first != fingerprint(replace(report, provenance=changed))


def test_a_trigger_that_works_without_a_detection_is_a_finding(report, check):
    report = replace(report, decision="no-backdoor-evidence", pruned={}, after=report.before)
    assert report.missed
    (result,) = check(sarif_of(report))["results"]
    assert result["ruleId"] == "backdoor-evidence" and result["level"] == "error"


def test_a_finding_is_ranked_by_its_probability(report, check):
    (result,) = check(sarif_of(report))["results"]
    properties = result["properties"]
    assert result["rank"] == 98.7 and properties["probability"] == 0.987 and properties["backdoorFrom"] == 0.8
    target = properties["mostProbableTarget"]
    assert target["class"] == 0 and target["probability"] == 0.97 and target["evidence"]["latent"] == -0.4
    known = check(sarif_of(replace(report, detection=None)))["results"][0]
    assert "rank" not in known and "probability" not in known["properties"]


def test_a_report_of_a_network_in_memory_has_no_digest(report, check):
    model = replace(report.model, path=None)
    (artifact,) = check(sarif_of(replace(report, model=model, provenance=None)))["artifacts"]
    assert artifact["location"]["uri"] == "model" and "hashes" not in artifact


def test_a_refused_checkpoint_is_a_finding_without_the_folders_of_this_machine(check):
    run = check(sarif_of_refusal(REFUSED, Path("/home/me/models/bad.pt"), replace(ORIGINAL, name="bad.pt")))
    (result,), (invocation,) = run["results"], run["invocations"]
    assert result["ruleId"] == "unsafe-checkpoint" and result["level"] == "error"
    assert result["message"]["text"].startswith("bad.pt holds pickled")
    assert invocation["exitCode"] == 2 and not invocation["executionSuccessful"]
    assert "/home" not in json.dumps(run)


def test_many_checkpoints_are_one_run(report, check):
    nothing = replace(report, decision="no-backdoor-evidence", before=figures(95, 90, 80, 0))
    refused = entry_of_refusal(REFUSED, Path("/home/me/models/bad.pt"), name="c/bad.pt")
    entries = [entry_of(report, "a/net.pt"), entry_of(nothing, "b/net.pt"), refused]
    run = check(sarif_log(entries, 1))
    assert [each["location"]["uri"] for each in run["artifacts"]] == ["a/net.pt", "b/net.pt", "c/bad.pt"]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"] for result in run["results"]]
    assert places == [{"uri": "a/net.pt", "index": 0}, {"uri": "c/bad.pt", "index": 2}]


def test_rules_are_complete_and_refer_to_known_entries(report, check):
    run = check(sarif_of(report))
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert set(rules) == {"backdoor-evidence", "not-repairable", "unsafe-checkpoint", "inconclusive"}
    known = {taxon for entries in TAXA.values() for taxon in entries}
    assert all(taxon in known for rule in RULES for taxon in rule.taxa)
    for name in ("backdoor-evidence", "not-repairable"):
        targets = {each["target"]["id"] for each in rules[name]["relationships"]}
        assert targets == {"AML.T0018.000", "AML.M0008", "ML10:2023"} <= set(rules[name]["properties"]["tags"])
    assert {taxon["id"] for each in run["taxonomies"] for taxon in each["taxa"]} == known
