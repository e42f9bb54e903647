"""The ML-BOM: valid by the official schema of CycloneDX 1.7, a repaired checkpoint as a descendant of the original."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.reports import ORIGINAL, REPAIRED, figures, repaired_report

from onp.defend.decision import DECISIONS

pytest.importorskip("cyclonedx", reason="the extra bom")

from onp.defend.report.bom import bom_available, bom_of
from onp.defend.report.sections import Tuned

FOLDER = Path(__file__).parents[1] / "schemas" / "cyclonedx"


@pytest.fixture(scope="module")
def check():
    """Parses a BOM; raises `jsonschema.ValidationError` where it breaks the schema."""
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    schemas = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.schema.json")}
    top = schemas["bom-1.7.SNAPSHOT.schema.json"]
    base = top["$id"].rpartition("/")[0]
    registry = Registry().with_resources(
        (f"{base}/{name}", Resource.from_contents(schema, DRAFT7)) for name, schema in schemas.items()
    )
    validator = jsonschema.Draft7Validator(top, registry=registry, format_checker=jsonschema.FormatChecker())

    def parsed(text):
        document = json.loads(text)
        validator.validate(document)
        return document

    return parsed


@pytest.fixture
def report():
    """A repair whose files have digests."""
    return repaired_report()


def digest_of(component):
    return {each["alg"]: each["content"] for each in component["hashes"]}["SHA-256"]


def test_a_repaired_model_descends_from_the_original(report, check):
    document = check(bom_of(report))
    assert document["specVersion"] == "1.7" and document["metadata"]["timestamp"].startswith("2026-11-29T10:00:00")
    model = document["metadata"]["component"]
    (ancestor,) = model["pedigree"]["ancestors"]
    assert model["type"] == ancestor["type"] == "machine-learning-model"
    assert digest_of(model) == REPAIRED.sha256 and digest_of(ancestor) == ORIGINAL.sha256
    assert model["bom-ref"] != ancestor["bom-ref"]


def test_the_model_card_has_figures_with_intervals_and_limits(report, check):
    report = replace(report, warning="Too dear.")
    card = check(bom_of(report))["metadata"]["component"]["modelCard"]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    (before,), (after,) = ([each for each in metrics if each["type"] == "accuracy" and each["slice"].startswith(network)]
                           for network in ("original", "repaired"))  # fmt: skip
    assert float(before["value"]) == pytest.approx(report.before.acc.value, abs=1e-6)
    low, high = after["confidenceInterval"]["lowerBound"], after["confidenceInterval"]["upperBound"]
    assert (float(low), float(high)) == pytest.approx(report.after.acc.interval, abs=1e-6)
    families = {each["slice"].split("; ")[1] for each in metrics if each["type"] == "attack success rate"}
    assert {f"surrogate ASR, {family}" for family in report.after.asr_surrogate} <= families
    assert card["considerations"]["technicalLimitations"][0] == "Too dear."


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_decision_is_valid(report, check, decision):
    if decision not in ("repaired", "partly-repaired"):
        report = replace(report, pruned={}, provenance=replace(report.provenance, outputs=()))
    model = check(bom_of(replace(report, decision=decision)))["metadata"]["component"]
    assert {"name": "onp:decision", "value": decision} in model["properties"]
    assert digest_of(model) in (ORIGINAL.sha256, REPAIRED.sha256)


def test_a_trained_network_has_its_own_figures(report, check):
    model = check(bom_of(replace(report, tuned=Tuned("ft-sam", figures(97, 1, 2, 0), None))))["metadata"]["component"]
    assert "trained on clean images with ft-sam" in model["pedigree"]["notes"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [each["value"] for each in metrics if each["type"] == "accuracy"] == ["0.950000", "0.970000"]


@pytest.mark.parametrize("installed", [None, SimpleNamespace(SchemaVersion=SimpleNamespace(V1_6="1.6"))])
def test_without_a_library_that_knows_the_version_there_is_none(monkeypatch, installed):
    assert bom_available()
    monkeypatch.setitem(sys.modules, "cyclonedx.schema", installed)  # None: the import fails
    assert not bom_available()


def test_a_network_in_memory_has_no_hash(report, check):
    report = replace(report, model=replace(report.model, path=None), provenance=None)
    model = check(bom_of(report))["metadata"]["component"]
    assert model["name"] == "model" and "hashes" not in model
