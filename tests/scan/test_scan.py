"""Whole scans: eight models by processes and on a Ray cluster, one after the other again, and what fails."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.scan_folders import FAILED, SCANNED, eight_models, embedded_networks, tiny_networks

from onp.defend.config import DefendConfig
from onp.errors import InputError, UnsafeCheckpointError
from onp.model.archs import build_network
from onp.pool import WorkerDied
from onp.scan import Row, ScanConfig, scan
from onp.scan.__main__ import main
from onp.scan.candidates import Candidate
from onp.scan.model_task import ModelTask, failed, with_arch
from onp.scan.pace import Pace
from onp.scan.planning import check, is_alone, workers_for

TABLES = ("results.md", "results.csv")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of eight models, of which three are small networks, and the options to scan it with."""
    base = tmp_path_factory.mktemp("tiny")
    zoo = eight_models(base / "zoo", *tiny_networks(base / "clean.npz"))
    return zoo, ["--norm", "none", "--data", str(base / "clean.npz"), "--preset", "fast", "--quiet"]


def rows_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_eight_models_are_scanned_by_processes(tiny, tmp_path, report_schema, capsys):
    # One test, since each that needs the scan would repeat it where tests run side by side.
    zoo, options = tiny
    out = tmp_path / "out"
    code = main([str(zoo), *options, "--out", str(out), "--workers", "2"])
    assert code == 1, "a pickle counts"
    check_rows(out, report_schema)
    check_log(out)
    capsys.readouterr()
    check_that_nothing_is_done_again(tiny, out, tmp_path / "zoo", capsys)


def check_rows(out, report_schema):
    rows = {row["name"]: row for row in rows_of(out)}
    assert set(rows) == {*SCANNED, *FAILED}
    assert {name: row["kind"] for name, row in rows.items() if "kind" in row} == FAILED
    assert list(rows)[4:] == ["pickled.pt", "broken.safetensors", "other.pth", "pointer.pt2"], "failures are last"
    found = [rows[name]["probability"] for name in list(rows)[:4]]
    assert found == sorted(found, reverse=True), "the highest probability comes first"
    twice = [rows[name] for name in ("again.safetensors", "clean.safetensors")]
    assert [row.get("same_as") for row in twice] == [None, "again.safetensors"]
    assert twice[0]["report"] == twice[1]["report"] and twice[0]["seconds"] == twice[1]["seconds"], "scanned once"
    for name in SCANNED:
        row = rows[name]
        assert row["arch"].startswith("vgg11_bn:width=") and row["arch_from"] == "weights"
        report = json.loads((out / row["report"]).with_name("report.json").read_text())
        report_schema.validate(report)
        assert report["task"] == "scan" and report["decision"] == row["decision"]
        assert not (out / row["report"]).with_name("model.safetensors").exists(), "nothing is repaired"
    text = "".join(path.read_text() for path in out.iterdir() if path.suffix in (".html", ".sarif", ".md", ".csv", ".jsonl"))
    assert str(out.parent) not in text
    assert {path.name for path in out.iterdir()} == {
        *("models", "results.jsonl", "results.md", "results.csv", "index.html", "report.sarif", "config.toml")
    }


def check_log(out):
    (run,) = json.loads((out / "report.sarif").read_text())["runs"]
    found = {}
    for result in run["results"]:
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
        found[place["uri"]] = result["ruleId"]
    assert found["pickled.pt"] == "unsafe-checkpoint"
    assert len(run["artifacts"]) == 8 and run["invocations"][0]["exitCode"] == 1
    notes = [each["message"]["text"] for each in run["invocations"][0]["toolExecutionNotifications"]]
    assert len(notes) == 4 and any("broken.safetensors" in text for text in notes)


def check_that_nothing_is_done_again(tiny, out, zoo, capsys):
    """Once more without what cannot be scanned, and with a model under another name."""
    shutil.copytree(tiny[0], zoo, symlinks=True, ignore=shutil.ignore_patterns(*FAILED, "again.*"))
    shutil.move(zoo / "clean.safetensors", zoo / "renamed.safetensors")
    before = {row["name"]: row for row in rows_of(out)}
    main([str(zoo), *tiny[1], "--out", str(out), "--resume", "--json"])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == rows_of(out)
    after = {row["name"]: row for row in printed}
    assert set(after) == {"badnets/model.safetensors", "renamed.safetensors", "repaired/model.safetensors"}
    assert after["badnets/model.safetensors"] == before["badnets/model.safetensors"]
    assert after["renamed.safetensors"]["seconds"] == before["clean.safetensors"]["seconds"], "the same content and options"


def test_a_cluster_gives_the_same_table(tmp_path, monkeypatch, report_schema):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work the workers would hardly run
    zoo = eight_models(tmp_path / "zoo", *embedded_networks(tmp_path / "clean.npz"))
    options = ["--norm", "fashion-mnist", "--data", str(tmp_path / "clean.npz"), "--preset", "fast", "--quiet"]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert main([str(zoo), *options, "--out", str(tmp_path / "cluster"), "--ray", "auto"]) == 1
    finally:
        ray.shutdown()
    assert main([str(zoo), *options, "--out", str(tmp_path / "processes"), "--workers", "2"]) == 1
    for name in TABLES:
        assert (tmp_path / "cluster" / name).read_text() == (tmp_path / "processes" / name).read_text()
    check_rows(tmp_path / "cluster", report_schema)
    rows = {row["name"]: row for row in rows_of(tmp_path / "cluster")}
    assert rows["badnets/model.safetensors"]["decision"] == "backdoor-evidence"
    assert rows["badnets/model.safetensors"]["class_name"] == "T-shirt/top"
    for name in ("clean.safetensors", "repaired/model.safetensors"):
        assert rows[name]["decision"] in ("no-backdoor-evidence", "inconclusive")


def test_pipes_devices_and_links_to_nothing_are_rows(tmp_path):
    np.savez(tmp_path / "clean.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    (tmp_path / "zoo").mkdir()
    os.mkfifo(tmp_path / "zoo" / "pipe.pt")
    (tmp_path / "zoo" / "device.pth").symlink_to("/dev/zero")
    (tmp_path / "zoo" / "nothing.pt").symlink_to("nowhere")
    given = ScanConfig(models=(str(tmp_path / "zoo"),), data=str(tmp_path / "clean.npz"), norm="none", quiet=True, workers=2)
    result = scan(given)
    assert {row.name: row.kind for row in result.rows} == dict.fromkeys(("device.pth", "nothing.pt", "pipe.pt"), "unusable")
    assert "device.pth is a device or pipe" in result.rows[0].error and result.exit_code() == 2


def test_one_file_that_cannot_be_scanned_is_one_sentence(tiny, capsys):
    zoo, options = tiny
    assert main([str(zoo / "broken.safetensors"), *options]) == 2
    assert "broken.safetensors" in capsys.readouterr().out


def test_one_file_prints_its_report_and_writes_nothing(tiny, capsys):
    zoo, options = tiny
    before = sorted(zoo.rglob("*"))
    code = main([str(zoo / "clean.safetensors"), *options])
    printed = capsys.readouterr().out
    assert code in (0, 1) and "Decision: " in printed and "ACC, clean images" in printed and "Written to" not in printed
    assert sorted(zoo.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ()}, "There is nothing to scan"),
        ({"preset": "best"}, "There is no preset 'best'"),
        ({"workers": -1}, "is no number of processes"),
        ({"workers": 2, "ray": "auto"}, "either --workers or --ray"),
        ({"gpu_share": 0.0}, "is no share of a GPU"),
    ],
)
def test_options_are_checked_first(given, message):
    with pytest.raises(InputError, match=message):
        check(ScanConfig(**{"models": ("zoo",)} | given))


def test_images_are_needed(tmp_path):
    (tmp_path / "a.pt").touch()
    with pytest.raises(InputError, match="clean images with --data"):
        scan(ScanConfig(models=(str(tmp_path),), norm="half", quiet=True))


def test_the_time_left_is_that_of_models_with_a_verdict():
    failure = Row("a.pt", "1", kind="unusable", error="no")
    verdict = Row("b.pt", "2", decision="no-backdoor-evidence", seconds=10.0)
    pace = Pace(6, 2)
    assert pace.left(failure) is None, "nothing is known yet"
    assert pace.left(verdict) == 35 / 2, "one runs and is half done, three wait, two at a time"
    assert [pace.left(verdict) for _ in range(4)] == [25 / 2, 15 / 2, 5, 0]


def test_as_many_processes_as_there_are_models():
    one = [Candidate("a.pt", "/a.pt")]
    assert is_alone(ScanConfig(), one) and not is_alone(ScanConfig(workers=1), one) and not is_alone(ScanConfig(), one * 2)
    assert workers_for(ScanConfig(workers=1), 1).processes == 1
    assert workers_for(ScanConfig(workers=5), 3).processes == 3
    assert workers_for(ScanConfig(), 3).processes in (1, 2, 3)
    assert workers_for(ScanConfig(ray="auto", gpu_share=0.5), 3).gpu_share == 0.5


def test_failures_are_told_apart_and_name_no_folder(tmp_path):
    path = tmp_path / "a.pt"
    task = ModelTask("a.pt", "1", DefendConfig(model=str(path)), None)
    kinds = {
        "unsafe": UnsafeCheckpointError(f"{path} holds pickled objects."),
        "unusable": InputError(f"{path} is damaged."),
        "crashed": WorkerDied("Its process ended before it did (SIGSEGV)"),
    }
    for kind, error in kinds.items():
        row = failed(task, error)
        assert row.kind == kind and str(tmp_path) not in row.to_json()
        assert row.error.startswith(str(error).replace(str(path), "a.pt").removesuffix("."))
    assert failed(task, ZeroDivisionError("x")).error == "This is an error in onp (ZeroDivisionError: x)."


def test_weights_and_configs_say_which_network_it_is(tmp_path):
    arch = "vgg11_bn:width=4,classes=3,channels=1"
    torch.save({"net": {f"module.{name}": each for name, each in build_network(arch).state_dict().items()}}, tmp_path / "a.pth")
    given = DefendConfig(model=str(tmp_path / "a.pth"))
    assert with_arch(dataclasses.replace(given, arch="vit"))[1] == "given"
    found, said = with_arch(given)
    assert (found.arch, said) == ("vgg11_bn:width=4,channels=1,classes=3", "weights") or found.arch == arch
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
    assert with_arch(given) == (given, "config.json")
