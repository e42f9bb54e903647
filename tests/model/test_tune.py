"""`--trigger` and `--tune`: a known trigger, and training after the pruning apart from what the pruning alone did."""

import json
from dataclasses import replace

import torch
from safetensors.torch import load_file

from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.demos import demo
from onp.defend.inputs import read_case
from onp.defend.outputs import write_outputs
from onp.defend.run import Run


def test_a_known_trigger_is_used_and_tuning_is_reported_apart_and_keeps_pruned_units_at_zero(tmp_path, report_schema):
    victim = demo("badnets")
    (tmp_path / "out").mkdir()
    known = DefendConfig(
        demo="badnets", trigger=str(victim.trigger), preset="fast", tune="ft", out=str(tmp_path / "out"), quiet=True
    )
    with Run.open(known) as run:
        run = replace(run, preset=replace(run.preset, tuning_passes=600))
        case = read_case(run)
        run.begin(case)
        outcome = run_pipeline(case, run)
        write_outputs(outcome, known.out)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    report_schema.validate(report)
    assert report["decision"] == "repaired" and report["tuned"]["method"] == "ft" and 0 < report["tuned"]["der"] <= 1
    assert list(report["before"]["asr_surrogate"]) == ["known"], "nothing stands in for it"
    assert report["after"]["asr"] <= 0.05, "the repair without the tuning"
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "Tuned with ft after the repair" in text and text.count("ACC, clean images") == 2
    assert "The written checkpoint was then trained with ft" in (tmp_path / "out" / "report.html").read_text()
    before, after = load_file(victim.model), load_file(tmp_path / "out" / "model.safetensors")
    for name, units in outcome.mask.pruned().items():
        assert not after[f"{name}.weight"][units].any()
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert all(before[key].dtype == after[key].dtype for key in before)
