"""Verification of a repair: what triggers and weights say, whatever the mask beside the checkpoint claims."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.made_findings import detection, figures, findings

from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.decision import exit_code
from onp.defend.report.repaired import repaired_notes
from onp.defend.run import Run
from onp.defend.verify import compare_mask, mask_beside
from onp.detect.anomaly import BN_SHIFT, PRIOR_SHIFT
from onp.errors import InputError
from onp.model.checkpoint import Checkpoint
from onp.model.mask import Mask

VERIFY = DefendConfig(quiet=True, verify=True, seed=3)


def with_file(victim, folder, mask=None):
    """The network as if it had been read from a folder, where a mask may lie."""
    if mask is not None:
        mask.save(folder / "mask.json")
    return replace(victim, checkpoint=Checkpoint(folder / "model.safetensors", "safetensors", {}))


@pytest.fixture(scope="module")
def verify(small, plain_verdict):
    """The outcome for a network of the tiny victim's images."""

    def run(victim, **known):
        return run_pipeline(replace(small.case(victim), **{"known_trigger": None} | known), Run(VERIFY, small.PRESET, seed=3))

    return run


def test_a_repaired_network_obeys_no_trigger(outcome, verify, tmp_path, report_schema):
    """Its own scan once convicted it by what pruning changes in the batch norms."""
    found = verify(with_file(outcome.victim, tmp_path, outcome.mask)).report
    assert found.decision == "no-backdoor-evidence" and found.task == "verify" and exit_code(found.decision) == 0
    assert found.headline.startswith("No trigger was found that this network obeys; the probability of a backdoor is")
    assert found.verification.pruned == found.verification.mask == outcome.mask.pruned() != {}
    assert not found.verification.not_zero and not found.verification.not_named and not found.pruned
    assert not {BN_SHIFT, PRIOR_SHIFT} & set(found.detection.anomaly_index)
    assert any("those that mask.json names" in note for note in found.notes)
    report_schema.validate(json.loads(found.to_json()))


def test_a_network_that_was_not_repaired_obeys_triggers(backdoored, verify, outcome, tmp_path):
    found = verify(backdoored.victim)
    report = found.report
    assert report.decision == "backdoor-evidence" and report.target_classes == (0,) and exit_code(report.decision) == 1
    assert "upper left" in report.reason and report.headline.startswith("Evidence of a backdoor (probability ")
    assert report.verification.mask is None and not report.verification.pruned and report.before.asr_surrogate
    assert any(note.startswith("No unit is pruned") for note in report.notes) and "verification" in report.to_json()
    assert torch.equal(found.mask.keep, torch.ones_like(found.mask.keep)) and "<html" in found.html()


def test_a_mask_that_is_not_in_the_weights_is_evidence_whatever_the_triggers_say(outcome, verify, tmp_path):
    names = [(layer.name, layer.units) for layer in outcome.victim.layers]
    keep = outcome.mask.keep.clone()
    back = int(keep.nonzero()[0])
    keep[back] = False
    found = verify(with_file(outcome.victim, tmp_path, Mask(keep, outcome.mask.layers))).report
    assert found.decision == "backdoor-evidence" and "1 unit is not zero that mask.json names" in found.headline
    assert found.verification.not_zero == {names[0][0]: [back]} and f"({names[0][0]} {back})" in found.reason
    assert "The probability of a backdoor is" in found.reason and found.target_classes == ()


def test_a_given_trigger_is_measured(backdoored, outcome, verify, small):
    known = small.case(backdoored.victim).known_trigger
    found = verify(outcome.victim, known_trigger=known).report
    assert found.decision == "no-backdoor-evidence" and found.before.asr_surrogate["known"].value < 0.2
    assert "The given trigger leads" in found.reason
    found = verify(backdoored.victim, known_trigger=known).report
    assert found.decision == "backdoor-evidence" and "the given trigger still reaches" in found.headline


def test_units_are_compared_in_both_directions(outcome):
    pruned = outcome.mask.pruned()
    layer = next(iter(pruned))
    fewer = Mask.from_pruned(outcome.mask.layers, pruned | {layer: pruned[layer][1:]})
    found = compare_mask(outcome.victim, fewer)
    assert found.not_named == {layer: pruned[layer][:1]} and not found.not_zero and found.pruned == pruned
    found = compare_mask(outcome.victim, None)
    assert found.mask is None and found.pruned == pruned and not found.not_named and not found.not_zero


def test_a_mask_of_another_network_or_none_at_all(backdoored, outcome, tmp_path):
    assert mask_beside(backdoored.victim) is None, "not read from a file"
    victim = with_file(backdoored.victim, tmp_path)
    assert mask_beside(victim) is None, "no mask beside it"
    outcome.mask.save(tmp_path / "mask.json")
    assert torch.equal(mask_beside(victim).keep, outcome.mask.keep)
    Mask(torch.tensor([True]), (("conv", 1),)).save(tmp_path / "mask.json")
    for content in (None, "[]", '{"format": 3}'):
        if content is not None:
            (tmp_path / "mask.json").write_text(content)
        with pytest.raises(InputError) as error:
            mask_beside(victim)
        assert str(error.value).count(". ") == 0 and str(error.value).endswith("move it away to verify without it.")


def test_a_scan_of_a_pruned_network_says_what_it_leaves_out():
    def said(found):
        return repaired_notes(findings("backdoor-evidence", figures({}), detection=found))

    (note,) = said(detection((0.98, 0.0, 0.0, 0.0), pruned=7))
    assert note.startswith("7 units are pruned already") and "batch-norm statistics" in note and "onp verify" in note
    assert said(detection((0.98, 0.0, 0.0, 0.0))) == () == said(None)
