import json

import pytest
import torch
from helpers.made_findings import figures, images

from onp.defend.clean_reference import CleanReference, clean_reference, read_clean_reference
from onp.defend.evaluation import Evaluation
from onp.defend.report.audit import AuditSet, HeldOutTriggers
from onp.defend.verdict import survivors
from onp.detect.bank import FAMILY_NAMES, Surrogate, weighted_bank
from onp.detect.known_trigger import KNOWN
from onp.engine.scoring import TriggeredBatch
from onp.errors import InputError

GOOD = {
    "shares": {"patch": 0.25, "warp": None},
    "networks": 24,
    "version": "2026-11-29-0a1b2c3d",
}


def test_the_installed_reference_knows_only_families_of_the_audit():
    reference = clean_reference()
    assert set(reference.shares) <= {*FAMILY_NAMES, KNOWN}
    assert reference.version and reference is clean_reference()


def test_a_family_that_was_not_measured_has_no_share(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(GOOD))
    reference = read_clean_reference(path)
    assert reference == CleanReference({"patch": 0.25}, 24, "2026-11-29-0a1b2c3d")
    assert [reference.share(family) for family in ("patch", "warp", "other")] == [0.25, None, None]


@pytest.mark.parametrize(("family", "left"), [("patch", ["patch"]), ("warp", [])])
def test_a_surrogate_is_judged_by_the_share_of_its_family(family, left):
    bank = weighted_bank([Surrogate(family, 0, 9.0, 1.0, 5.0, None, torch.clone)], [1.0], 0)
    nothing = torch.zeros(0)
    held_out = HeldOutTriggers(bank, (TriggeredBatch(family, nothing, nothing, nothing),))
    reference = CleanReference({"patch": 0.25, "warp": 0.75}, 24, "2026-11-29-0a1b2c3d")
    found = survivors(figures({family: 40}), AuditSet(images(), (held_out,), Evaluation()), reference)
    assert [survivor.name for survivor in found] == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(GOOD | {"shares": []}),
        json.dumps(GOOD | {"shares": {"patch": "many"}}),
        json.dumps(GOOD | {"shares": {"patch": 1.5}}),
        json.dumps(GOOD | {"shares": {"patch": float("nan")}}),
        json.dumps(GOOD | {"shares": {"patch": -0.5}}),
        json.dumps(GOOD | {"networks": -1}),
        json.dumps(GOOD | {"networks": "24"}),
        json.dumps(GOOD | {"version": None}),
    ],
)
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"reference\.json is missing or damaged; install onp again\."):
        read_clean_reference(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="is missing or damaged"):
        read_clean_reference(tmp_path / "reference.json")
