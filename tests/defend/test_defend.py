"""The main job: what it decides, what it writes, and what it says about bad input."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from onp.attack.triggers import load_trigger
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.defend import defend, run_pipeline
from onp.defend.__main__ import main
from onp.defend.config import DefendConfig
from onp.defend.decision import REPAIRS
from onp.defend.demos import ARCH, NORM, clean_images, demo
from onp.defend.evaluation import Evaluation, TrueImages
from onp.defend.report.bom import bom_available
from onp.defend.report.warnings import over_budget
from onp.defend.resolve import preset_of
from onp.defend.run import Run
from onp.engine.metrics import Share
from onp.model.archs import build_network
from onp.model.graph_cut import GraphCut
from onp.model.heal import HealConfig
from onp.model.mask import load_mask
from onp.model.prune import prune
from onp.model.victim import load_victim

REPORTS = ["report.html", "report.json", "report.sarif", "report.txt", "statement.intoto.json"]
if bom_available():
    REPORTS.append("sbom.cdx.json")
    REPORTS.sort()
BASE = ("--arch", ARCH, "--norm", NORM, "--quiet")


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """One run on the embedded badnets victim, with everything it writes."""
    out = tmp_path_factory.mktemp("run") / "out"
    outcome = defend(DefendConfig(demo="badnets", preset="fast", out=str(out), quiet=True))
    return out, outcome


def test_a_backdoor_is_found_and_removed(repaired):
    _, outcome = repaired
    report = outcome.report
    assert report.decision in REPAIRS and report.target_class == 0
    assert report.before.asr.value > 0.95 and report.after.asr.value <= 0.05
    assert report.before.acc.value - report.after.acc.value <= 0.02


def test_the_repaired_checkpoint_is_the_old_one_with_rows_of_zeros_and_a_later_half_that_was_healed(repaired):
    out, outcome = repaired
    before, after = load_file(demo("badnets").model), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(before[key].dtype == after[key].dtype for key in before)
    build_network(ARCH).load_state_dict(after)
    mask = load_mask(out / "mask.json", outcome.victim)
    assert torch.equal(mask.keep, outcome.mask.keep)
    for name, units in mask.pruned().items():
        weight = f"{name}.weight"
        assert not after[weight][units].any()
    pruned = prune(load_victim(demo("badnets").model, ARCH, Normalisation.parse(NORM), (1, 28, 28)), mask)
    late = GraphCut.of(pruned.program, HealConfig().depth).late_parameters()
    for name, tensor in pruned.checkpoint.state.items():
        assert torch.equal(after[name], tensor) != (name in late), name


def test_the_report_holds_what_it_promises(repaired):
    out, _ = repaired
    report = json.loads((out / "report.json").read_text())
    assert report["schema_version"] == 1 and report["decision"] in REPAIRS and report["target_class"] == 0
    for side in ("before", "after"):
        low, high = report[side]["acc_ci"]
        assert low <= report[side]["acc"] <= high
        assert report[side]["asr_surrogate"] and {"asr", "ra", "asr_clean"} <= report[side].keys()
    assert report["after"]["der"] > 0.9
    assert report["pruned"]["count"] == sum(map(len, report["pruned"]["layers"].values())) > 0
    assert {"evaluations", "masks_per_second", "wall_seconds"} <= report["budget"].keys()
    assert report["budget"]["evaluations"] <= 150
    assert {"versions", "hardware", "seed", "model", "data"} <= report.keys()
    assert "ASR, true trigger" in (out / "report.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "mask.json",
        "model.safetensors",
        "model_card.md",
        *REPORTS,
    ]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_digest_is_that_of_the_file(repaired):
    out, _ = repaired
    given, made = demo("badnets"), json.loads((out / "report.json").read_text())["provenance"]
    assert {each["role"]: (each["name"], each["sha256"]) for each in made["inputs"]} == {
        role: (path.name, digest(path))
        for role, path in {
            "model": given.model,
            "data": given.clean,
            "evaluation data": given.evaluation,
            "evaluation trigger": given.trigger,
        }.items()
    }
    names = {"repaired model": "model.safetensors", "mask": "mask.json"}
    assert {each["role"]: each["name"] for each in made["outputs"]} == names
    assert all(each["sha256"] == digest(out / each["name"]) for each in made["outputs"])
    card, text = (out / "model_card.md").read_text(), (out / "report.html").read_text()
    assert all(each["sha256"] in card for each in (*made["inputs"], *made["outputs"])) and made["created"] in card + text
    statement = json.loads((out / "statement.intoto.json").read_text())
    assert [each["digest"]["sha256"] for each in statement["subject"]] == [
        digest(given.model), digest(out / "model.safetensors")
    ]  # fmt: skip
    reports = {each["name"]: each["digest"]["sha256"] for each in statement["predicate"]["reports"]}
    assert {"report.json", "report.html", "model_card.md", "report.sarif"} <= set(reports)
    assert reports == {name: digest(out / name) for name in reports}
    (artifact,) = json.loads((out / "report.sarif").read_text())["runs"][0]["artifacts"]
    assert artifact["hashes"]["sha-256"] == digest(given.model)


def test_no_report_names_a_folder_of_this_machine(repaired):
    out, outcome = repaired
    folders = (str(out.parent), str(demo("badnets").model.parent), str(Path.home()), os.getcwd())
    texts = {path.name: path.read_text() for path in out.iterdir() if path.name not in ("model.safetensors", "config.toml")}
    texts["stdout"] = outcome.report.to_json() + outcome.report.to_text()
    assert not [(name, folder) for name, text in texts.items() for folder in folders if folder + "/" in text]


def test_a_refused_checkpoint_leaves_a_finding_and_room_for_the_next_try(tmp_path, capsys):
    (tmp_path / "unsafe").mkdir()
    bad, out = tmp_path / "unsafe" / "net.pt", tmp_path / "out"
    torch.save({"weights": torch.zeros(2), "run": print}, bad)
    options = ("--model", str(bad), *BASE, "--data", str(demo("clean").clean), "--out", str(out))
    for _ in range(2):  # the log of the first try is in the way of no other
        assert main([*options]) == 2
        assert "holds pickled Python objects" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["report.sarif"]
    (run,) = json.loads((out / "report.sarif").read_text())["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["unsafe-checkpoint"]
    assert run["artifacts"][0]["hashes"]["sha-256"] == digest(bad) and str(tmp_path) not in json.dumps(run)


def test_a_repair_that_costs_more_than_allowed_says_so():
    assert over_budget(Share(90, 100), Share(89, 100), 0.01) is None
    sentence = over_budget(Share(180, 200), Share(175, 200), 0.01)
    assert "lost 2.5 points" in sentence and "n = 200" in sentence and "the budget of 1;" in sentence


def test_the_decision_does_not_see_what_is_only_for_measuring(outcome, small, backdoored):
    images = small.clean_images(60)
    stamped = ImageSet((small.stamp(images.pixels()) * 255).round().byte(), images.labels, images.class_names)
    evaluation = Evaluation(images, TrueImages(stamped, 0))
    case = replace(small.case(backdoored.victim), evaluation=evaluation)
    again = run_pipeline(case, Run(DefendConfig(quiet=True), small.PRESET))
    assert again.report.after.asr is not None is outcome.report.after.asr and again.report.decision == outcome.report.decision
    assert torch.equal(again.mask.keep, outcome.mask.keep)


def test_a_clean_model_is_left_alone(tmp_path):
    outcome = defend(DefendConfig(demo="clean", preset="fast", out=str(tmp_path / "out"), quiet=True))
    # Other splits of the images change the probability a little.
    assert outcome.report.decision in ("no-backdoor-evidence", "inconclusive")
    assert bool(outcome.mask.keep.all())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == REPORTS


def test_with_a_known_trigger_nothing_stands_in_for_it():
    known = [preset_of(DefendConfig(demo="wanet", **given)) for given in ({}, {"trigger": "t"}, {"triggered_data": "d"})]
    objectives = [preset.search.objective for preset in known]
    assert objectives[0].w_backdoor > 0 == objectives[1].w_backdoor and objectives[0].w_target > objectives[1].w_target
    assert objectives[1] == objectives[2]


def test_images_that_carry_the_trigger_are_enough(tmp_path):
    victim, images = demo("badnets"), clean_images()
    others = images.subset(images.labels != 0)
    for index, image in enumerate((load_trigger(victim.trigger)(others.pixels()) * 255).round().byte()[:120]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index}.png")
    outcome = defend(DefendConfig(demo="badnets", triggered_data=str(tmp_path), preset="fast", quiet=True))
    assert outcome.report.decision in REPAIRS and outcome.report.target_class == 0
    assert outcome.report.after.asr.value <= 0.05


def test_list_demos(capsys):
    assert main(["--list-demos"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["badnets", "blended", "wanet", "clean"]


@pytest.mark.parametrize(
    ("stage", "options", "last_words", "left"),
    [
        ("detecting the target class", [], "nothing was written.", []),
        ("searching for the mask", ["--preset", "fast", "--out", "out"], "continue with --resume.", ["out/state"]),
    ],
)
def test_an_interrupt_leaves_nothing_but_the_state(tmp_path, stage, options, last_words, left):
    command = [sys.executable, "-m", "onp.defend", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores interrupts, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in process.stderr:
            if line.startswith(stage):
                process.send_signal(signal.SIGINT)
                break
        _, printed = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and f"Interrupted; {last_words}" in printed and "Traceback" not in printed
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")] == left
