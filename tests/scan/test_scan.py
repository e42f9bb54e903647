"""Whole scans: eight models by processes and on a Ray cluster, one after the other again, and what fails."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers.scan_folders import eight_models, images

from onp.defend.config import DefendConfig
from onp.errors import InputError, UnsafeCheckpointError
from onp.model.archs import build_network
from onp.pool import WorkerDied
from onp.scan import ScanConfig, scan
from onp.scan.__main__ import main
from onp.scan.candidates import Candidate
from onp.scan.model_task import ModelTask, failed, with_arch
from onp.scan.planning import check, is_alone, workers_for

TABLES = ("results.md", "results.csv")
FAILED = {"pickled.pt": "unsafe", "broken.safetensors": "unusable", "other.pth": "unusable", "pointer.pt2": "unusable"}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The folder of models, and the images to scan them with."""
    base = tmp_path_factory.mktemp("scan")
    return eight_models(base / "zoo"), images(base / "clean.npz")


def options(eight, out):
    zoo, clean = eight
    return [str(zoo), "--norm", "fashion-mnist", "--data", str(clean), "--preset", "fast", "--out", str(out), "--quiet"]


def rows_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def by_processes(eight, out):
    """Scan with two processes; the exit code."""
    return main([*options(eight, out), "--workers", "2"])


def test_eight_models_are_scanned_by_processes(eight, tmp_path, report_schema, capsys):
    # One test, since each that needs the scan would repeat it where tests run side by side.
    out = tmp_path / "out"
    assert by_processes(eight, out) == 1
    check_rows(out, report_schema)
    check_log(out)
    capsys.readouterr()
    check_that_nothing_is_done_again(eight, out, tmp_path / "zoo", capsys)


def check_rows(out, report_schema):
    rows = {row["name"]: row for row in rows_of(out)}
    assert next(iter(rows)) == "badnets/model.safetensors", "the highest score comes first"
    assert rows["badnets/model.safetensors"]["decision"] == "backdoor-evidence"
    assert rows["badnets/model.safetensors"]["class_name"] == "T-shirt/top"
    for name in ("clean.safetensors", "repaired/model.safetensors"):
        assert rows[name]["decision"] in ("no-backdoor-evidence", "inconclusive")
        assert rows[name]["arch"] == "vgg11_bn:width=16,channels=1" and rows[name]["arch_from"] == "weights"
    twice = [rows[name] for name in ("again.safetensors", "clean.safetensors")]
    assert [row.get("same_as") for row in twice] == [None, "again.safetensors"]
    assert twice[0]["report"] == twice[1]["report"] and twice[0]["seconds"] == twice[1]["seconds"], "scanned once"
    assert {name: row["kind"] for name, row in rows.items() if "kind" in row} == FAILED
    assert len(rows) == 8
    for row in rows.values():
        if "decision" in row:
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
    assert found["badnets/model.safetensors"] == "backdoor-evidence" and found["pickled.pt"] == "unsafe-checkpoint"
    assert len(run["artifacts"]) == 8 and run["invocations"][0]["exitCode"] == 1
    notes = [each["message"]["text"] for each in run["invocations"][0]["toolExecutionNotifications"]]
    assert len(notes) == 4 and any("broken.safetensors" in text for text in notes)


def check_that_nothing_is_done_again(eight, out, zoo, capsys):
    """Once more without what cannot be scanned, and with a model under another name."""
    shutil.copytree(eight[0], zoo, symlinks=True, ignore=shutil.ignore_patterns(*FAILED, "again.*"))
    shutil.move(zoo / "clean.safetensors", zoo / "renamed.safetensors")
    before = {row["name"]: row for row in rows_of(out)}
    assert main([*options((zoo, eight[1]), out), "--resume", "--json"]) == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == rows_of(out)
    after = {row["name"]: row for row in printed}
    assert set(after) == {"badnets/model.safetensors", "renamed.safetensors", "repaired/model.safetensors"}
    assert after["badnets/model.safetensors"] == before["badnets/model.safetensors"]
    assert after["renamed.safetensors"]["seconds"] == before["clean.safetensors"]["seconds"], "the same content and options"


def test_a_cluster_gives_the_same_table(eight, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work the workers would hardly run
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        code = main([*options(eight, tmp_path / "cluster"), "--ray", "auto"])
    finally:
        ray.shutdown()
    assert code == by_processes(eight, tmp_path / "processes")
    for name in TABLES:
        assert (tmp_path / "cluster" / name).read_text() == (tmp_path / "processes" / name).read_text()


def test_one_file_that_cannot_be_scanned_is_one_sentence(eight, capsys):
    zoo, clean = eight
    code = main([str(zoo / "broken.safetensors"), "--norm", "half", "--data", str(clean), "--quiet"])
    assert code == 2 and "broken.safetensors" in capsys.readouterr().out


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


def test_images_are_needed(eight):
    with pytest.raises(InputError, match="clean images with --data"):
        scan(ScanConfig(models=(str(eight[0]),), norm="half", quiet=True))


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
