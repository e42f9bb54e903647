"""The comparison: a whole small matrix, its tables, a killed run, a failing cell, and bad input."""

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onp import compare as package
from onp.attack.triggers import load_trigger
from onp.compare import CompareConfig, compare, pool
from onp.compare.__main__ import main
from onp.compare.cell import Cell, run_cell
from onp.compare.datasets import Cuts
from onp.compare.defences.pruning import Curve
from onp.compare.measure import truth_of
from onp.compare.pool import run_all
from onp.compare.table import as_csv, as_markdown, timed_alike
from onp.compare.victims import read_card, ready, trainings
from onp.data.images import Normalisation, load_images
from onp.engine.metrics import predictions
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import repair
from onp.model.victim import load_victim

ARCH = "vgg11_bn:width=4"
TRAIN, TEST = "the training images", "the test images"
ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    **{"acc_before": 0.9, "acc": 0.8, "asr_before": 1.0, "asr": 0.1, "ra_before": 0.0, "ra": 0.5},
    **{"asr_untriggered": 0.0, "der": 0.9, "decision": "tuned", "seconds": 1.0},
}


def write_images(path, count, seed, **more):
    """Three classes of 16x16 images that mirroring does not change: bright top, bright bottom, dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :8] += 120
    images[labels == 1, :, 8:] += 120
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images.numpy(), labels=labels.numpy(), **more)
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two victims and three defences."""
    folder = tmp_path_factory.mktemp("compare")
    return CompareConfig(
        out=str(folder / "table"),
        attacks=("blended", "none"),
        defences=("clp", "fp+ft", "ft"),
        archs=(ARCH,),
        data=(write_images(folder / "train.npz", 600, 0),),
        test_data=(write_images(folder / "test.npz", 300, 1),),
        norm=("half",),
        epochs=8,
        clean=120,
        evaluation=150,
        max_acc_drop=0.05,
        passes=1500,
        threads=1,
        quiet=True,
    )


@pytest.fixture(scope="module")
def rows(config):
    return compare(config)


def cells_of(config, rows):
    """The cells of a finished table."""
    store = Path(config.out)
    return {path.stem: json.loads(path.read_text()) for path in (store / "cells").iterdir()}, rows


def test_every_cell_ran_once_and_has_its_figures(config, rows):
    kept, _ = cells_of(config, rows)
    assert len(rows) == len(kept) == 6 and not any("error" in row for row in rows)
    attacked = [row for row in rows if row["attack"] == "blended"]
    assert [row["defence"] for row in attacked] == ["clp", "fp+ft", "ft"]
    for row in attacked:
        assert row["acc_before"] > 0.9 and row["asr_before"] > 0.5
        assert 0 <= row["asr"] <= 1 and 0 <= row["ra"] <= 1 and {"acc_reactivated", "asr_reactivated"} <= row.keys()
        lost = max(0, row["acc_before"] - row["acc"])
        assert row["der"] == pytest.approx((max(0, row["asr_before"] - row["asr"]) - lost + 1) / 2)
        assert row["seconds"] > 0
    for row in rows:
        assert ("asr" in row) == (row["attack"] == "blended")
    clp = attacked[0]
    within = [
        asr for acc, asr in zip(clp["curve"]["acc"], clp["curve"]["asr"], strict=True) if clp["acc_before"] - acc <= 0.05 + 1e-9
    ]
    assert clp["asr_oracle"] == min([clp["asr_before"], *within]) and clp["evaluations"] >= 1
    assert "asr_oracle" not in attacked[2], "a tuning has no threshold to peek for"


def test_the_files_of_a_table(config, rows):
    folder = Path(config.out)
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["victim"], row["defence"]) for row in table] == [(row["victim"], row["defence"]) for row in rows]
    assert float(table[0]["asr"]) == rows[0]["asr"] and table[3]["asr"] == ""
    text = (folder / "results.md").read_text()
    assert "## All attacks" in text and "## False repairs: clean networks" in text and "Failed" not in text
    plots = ["acc_asr.png", "attacks.png", "time_der.png"]
    if importlib.util.find_spec("matplotlib"):
        assert all((folder / name).read_bytes()[:4] == b"\x89PNG" and name in text for name in plots)
    else:
        assert not any(name in text for name in plots)


def test_a_second_run_computes_nothing(config, rows, monkeypatch):
    monkeypatch.setattr(package, "run_cell", lambda cell: pytest.fail("a finished cell ran again"))
    monkeypatch.setattr(package, "train", lambda training: pytest.fail("a victim was trained again"))
    assert compare(config) == rows


def test_a_failing_cell_is_in_the_table_and_runs_again(config, rows, monkeypatch, tmp_path):
    calls = []

    def fails_once(cell):
        calls.append(cell.key)
        if len(calls) == 1:
            raise RuntimeError("no luck\nat all")
        return FIGURES

    monkeypatch.setattr(package, "run_cell", fails_once)
    victim = str(Path(config.out) / "victims" / rows[0]["victim"])
    other = replace(config, out=str(tmp_path / "table"), attacks=(), victims=(victim,), data=(), defences=("ft", "clp"))
    first = compare(other)
    assert [row.get("error") for row in first] == ["RuntimeError: no luck at all", None]
    assert (
        "- " + rows[0]["victim"] + ", ft, seed 0: RuntimeError: no luck at all" in (tmp_path / "table/results.md").read_text()
    )
    again = compare(other)
    assert len(calls) == 3 and not any("error" in row for row in again)


def test_a_victim_that_cannot_be_trained_fails_its_cells_only(config, rows, tmp_path, monkeypatch):
    def refuses(training):
        raise InputError("the disk is full")

    monkeypatch.setattr(package, "train", refuses)
    monkeypatch.setattr(package, "run_cell", lambda cell: FIGURES)
    victim = str(Path(config.out) / "victims" / rows[0]["victim"])
    found = compare(replace(config, out=str(tmp_path / "t"), victims=(victim,), attacks=("badnets",), defences=("ft",)))
    assert ["error" in row for row in found] == [False, True] and found[1]["error"] == "the disk is full"


def test_a_killed_run_continues(config, rows, tmp_path):
    """Killed once a cell is there: the next run starts with the others and ends with the same figures."""
    victim = Path(config.out) / "victims" / rows[0]["victim"]
    command = [sys.executable, "-m", "onp.compare", "--out", str(tmp_path / "t"), "--victims", str(victim), "--quiet"]
    command += ["--test-data", config.test_data[0], "--defences", "clp", "ft", "--threads", "1", "--epochs", "8"]
    command += ["--clean", "120", "--evaluation", "150", "--max-acc-drop", "0.05", "--passes", "1500"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    kept = tmp_path / "t" / "cells"
    deadline = time.monotonic() + 300
    while not any(kept.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert first
    assert main([*command[3:]]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    done = {row["defence"]: row for row in map(json.loads, (path.read_text() for path in kept.glob("*.json")))}
    assert done["clp"]["asr"] == rows[0]["asr"] and done["ft"]["asr"] == rows[2]["asr"]
    assert done["ft"]["acc_reactivated"] == rows[2]["acc_reactivated"]


def test_a_folder_of_other_settings_is_refused(config, rows, tmp_path):
    with pytest.raises(InputError, match="--passes 1500"):
        compare(replace(config, passes=2000))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        compare(replace(config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--defences", "magic"], "magic"),
        (["--defences", "ft+clp"], "ft+clp"),
        (["--defences", "clp+npd"], "clp+npd"),
        (["--attacks", "badnets"], "--data"),
        (["--attacks", "badnets", "--data", "a", "b", "--test-data", "a"], "--test-data"),
        (["--victims", "nowhere", "--test-data", "x.npz"], "card.json"),
        (["--victims", "nowhere"], "--test-data"),
        (["--max-acc-drop", "5"], "0.01"),
        (["--gpu-share", "25"], "a quarter"),
        (["--passes", "0"], "--passes"),
        (["--seeds", "1", "1"], "--seeds"),
        (["--seeds", "99999999999999999999"], "--seeds takes numbers from 0 to 2147483647"),
        (["--victim-seed", "-1"], "--victim-seed"),
        (["--threads", "-1"], "--threads"),
        (["--norm", "nope"], "'nope'"),
        (["--data", "train.npz", "--test-data", "test.npz"], "--attacks"),
        (["--attacks", "none", "--data", "nofile", "--test-data", TEST], "nofile"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TEST, "--norm", "cifar10"], "--norm cifar10"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TEST, "--norm", "half", "--archs", "nope"], "'nope'"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TRAIN, "--norm", "half"], "not trained on"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(options, word, config, tmp_path, capsys):
    options = [{TRAIN: config.data[0], TEST: config.test_data[0]}.get(option, option) for option in options]
    assert main(["--out", str(tmp_path / "t"), "--quiet", *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and word in said.err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("wrong", [{"attacks": ("blended", "magic")}, {"test_data": ("nowhere",)}, {"clean": 290}])
def test_what_cannot_be_used_leaves_no_folder_behind(config, wrong, tmp_path):
    """So that the command put right is not refused for its other settings; the first attack's images were cut before."""
    with pytest.raises(InputError):
        compare(replace(config, out=str(tmp_path / "t"), **wrong))
    assert not (tmp_path / "t").exists()


@pytest.fixture
def no_work(monkeypatch):
    """Cells and trainings that give figures at once: for tests of what is refused and what is read."""
    monkeypatch.setattr(package, "run_cell", lambda cell: FIGURES)
    monkeypatch.setattr(package, "train", lambda training: None)


def ready_victim(config, rows, folder, **card):
    """A copy of the attacked victim; what is given replaces what its card says."""
    shutil.copytree(Path(config.out) / "victims" / rows[0]["victim"], folder)
    (folder / "card.json").write_text(json.dumps(read_card(folder) | card))
    return str(folder)


def other_table(config, tmp_path, victim, **changed):
    """A table of one ready victim and one defence."""
    given = {"out": str(tmp_path / "t"), "attacks": (), "data": (), "victims": (victim,), "defences": ("ft",)}
    return replace(config, **given | changed)


def test_another_test_set_of_the_same_name_is_refused(config, rows, no_work, tmp_path):
    victim = ready_victim(config, rows, tmp_path / "vic")
    table = other_table(config, tmp_path, victim)
    assert len(compare(table)) == 1 == len(compare(table))
    other = write_images(tmp_path / "elsewhere" / "test.npz", 300, 5)
    with pytest.raises(InputError, match="cut from other images"):
        compare(replace(table, test_data=(other,)))
    train = write_images(tmp_path / "second.npz", 600, 2)
    both = {"data": (config.data[0], train), "test_data": (config.test_data[0], other)}
    with pytest.raises(InputError, match="Two --test-data have the short name 'test'"):
        compare(replace(config, out=str(tmp_path / "both"), **both))
    assert not (tmp_path / "both").exists()


def test_another_training_set_or_normalisation_of_a_victim_is_refused(config, rows):
    with pytest.raises(InputError, match="other --norm"):
        compare(replace(config, norm=("none",)))
    path = Path(config.out).parent / "other" / "train.npz"
    for attacks in (config.attacks, ("badnets",)):
        with pytest.raises(InputError, match=r"other images than those of .*train\.npz"):
            compare(replace(config, attacks=attacks, data=(write_images(path, 600, 4),)))
    mark = Path(config.out) / "data" / "train-1" / "train.txt"
    digest = mark.read_text()
    mark.unlink()  # as in a table begun before there was one
    with pytest.raises(InputError, match="other images as --data"):
        compare(replace(config, data=(str(path),)))
    mark.write_text(digest)


def test_an_unfinished_victim_of_other_images_is_refused_before_any_work(config, rows, tmp_path):
    table = replace(config, out=str(tmp_path / "t"), attacks=("badnets",))
    ((training, _),) = trainings(table, tmp_path / "t", Cuts(table, tmp_path / "t"))
    kept = Path(training.out) / "unfinished"
    kept.mkdir(parents=True)
    (kept / "settings.json").write_text(json.dumps({"norm": "half", "data": "others"}))
    with pytest.raises(InputError, match="other images as --data"):
        trainings(table, tmp_path / "t", Cuts(table, tmp_path / "t"))


def test_a_ready_victim_is_not_measured_on_its_training_images(config, rows, no_work, tmp_path):
    victim = ready_victim(config, rows, tmp_path / "vic")
    with pytest.raises(InputError, match=r"About 600 of the 600 images of --test-data .* not trained on"):
        compare(other_table(config, tmp_path, victim, test_data=config.data))


def test_a_full_disk_is_one_sentence(config, rows, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onp.compare.__main__.compare", full)
    assert main(["--out", config.out, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "No space left" in said


def test_another_victim_of_the_same_name_is_refused(config, rows, no_work, tmp_path):
    table = other_table(config, tmp_path, ready_victim(config, rows, tmp_path / "a" / "vic"))
    compare(table)
    kept = next((tmp_path / "t" / "cells").iterdir())
    other = ready_victim(config, rows, tmp_path / "b" / "vic")
    clean = next(folder for folder in (Path(config.out) / "victims").iterdir() if folder.name.startswith("none"))
    shutil.copy(clean / "model.safetensors", other)
    with pytest.raises(InputError, match="with another model"):
        compare(replace(table, victims=(other,)))
    with pytest.raises(InputError, match="with another normalisation"):
        compare(replace(table, victims=(ready_victim(config, rows, tmp_path / "c" / "vic", norm="none"),)))
    row = json.loads(kept.read_text())
    del row["content"]  # as cells were written before
    kept.write_text(json.dumps(row))
    assert compare(table)[0]["acc"] == FIGURES["acc"]


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "\\xff"])
def test_a_damaged_cell_is_refused_before_any_work(config, rows, no_work, tmp_path, text, monkeypatch):
    table = other_table(config, tmp_path, ready_victim(config, rows, tmp_path / "vic"))
    compare(table)
    kept = next((tmp_path / "t" / "cells").iterdir())
    kept.write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(package, "run_cell", lambda cell: pytest.fail("a cell ran"))
    with pytest.raises(InputError, match="damaged; delete it"):
        compare(replace(table, defences=("clp", "ft")))


def test_the_card_says_whether_there_is_a_trigger(config, rows, no_work, tmp_path):
    stale = ready_victim(config, rows, tmp_path / "stale", attack="none")
    table = other_table(config, tmp_path, stale)
    assert ready(table, Cuts(table, tmp_path))[0].trigger is None
    lacks = ready_victim(config, rows, tmp_path / "lacks")
    (tmp_path / "lacks" / "trigger.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks trigger\.safetensors"):
        compare(replace(table, victims=(lacks,)))
    shutil.copytree(config.out, tmp_path / "copy")
    (tmp_path / "copy" / "victims" / rows[0]["victim"] / "trigger.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks trigger\.safetensors"):
        compare(replace(config, out=str(tmp_path / "copy")))
    text = as_markdown([outcome(0, 0.1) | {"attack": "none"}], {})
    assert "## False repairs" in text and "## All attacks" not in text


def test_a_test_set_that_lacks_a_class_is_labelled_as_the_victim_labels(config, rows, tmp_path):
    """Its own labels count the classes it holds: 0 is 'b', 1 is 'c'."""
    images = load_images(config.test_data[0])
    some = images.subset(images.labels > 0)
    path = tmp_path / "some.npz"
    np.savez(path, images=some.images.numpy(), labels=some.labels.numpy() - 1, class_names=np.array(["b", "c"]))
    named = ready_victim(config, rows, tmp_path / "named", class_names=["a", "b", "c"])
    unnamed = ready_victim(config, rows, tmp_path / "unnamed", class_names=None)
    table = other_table(config, tmp_path, named, victims=(named, unnamed), test_data=(str(path),), clean=60)
    cuts = Cuts(table, tmp_path)
    first, second = ready(table, cuts)
    cuts.write()
    assert set(load_images(first.clean).labels.tolist()) == set(load_images(first.evaluation).labels.tolist()) == {1, 2}
    assert load_images(first.evaluation).class_names == ("a", "b", "c")
    assert set(load_images(second.evaluation).labels.tolist()) == {0, 1}, "a card without names leaves them as they are"
    with pytest.raises(InputError, match="b, c, that are not among those of the victim, x, y, z"):
        ready(replace(table, victims=(ready_victim(config, rows, tmp_path / "x", class_names=["x", "y", "z"]),)), cuts)


def test_a_few_test_images_that_are_trained_on_are_said(config, tmp_path, caplog):
    train, test = load_images(config.data[0]), load_images(config.test_data[0])
    images = torch.cat((test.images, train.images[:3]))
    np.savez(tmp_path / "few.npz", images=images.numpy(), labels=torch.cat((test.labels, train.labels[:3])).numpy())
    table = replace(config, out=str(tmp_path / "t"), test_data=(str(tmp_path / "few.npz"),))
    assert len(trainings(table, tmp_path / "t", Cuts(table, tmp_path / "t"))) == 2
    assert "3 of the 303 images" in caplog.text


def test_no_defence_gets_an_image_that_is_measured_on(config, rows):
    clean, evaluation = Cuts(config, Path(config.out)).cut(config.test_data[0], 1)
    ours, others = load_images(clean), load_images(evaluation)
    assert (len(ours), len(others)) == (120, 150)
    assert torch.bincount(ours.labels).tolist() == [40, 40, 40] and set(others.labels.tolist()) == {0, 1, 2}
    seen = {image.numpy().tobytes() for image in ours.images}
    assert not seen & {image.numpy().tobytes() for image in others.images}


def test_the_curve_on_test_images_is_what_repaired_networks_do(config, rows):
    folder = Path(config.out) / "victims" / rows[0]["victim"]
    card = read_card(folder)
    victim = load_victim(folder / "model.safetensors", card["arch"], Normalisation.parse(card["norm"]), (1, 16, 16))
    _, evaluation = Cuts(config, Path(config.out)).cut(config.test_data[0], 1)
    truth = truth_of(victim, load_images(evaluation), load_trigger(folder / "trigger.safetensors"), card["target"])
    keep = torch.ones((2, victim.units), dtype=torch.bool)
    keep[1, ::3] = False
    acc, asr = truth.along(victim, Curve((0.0, 1.0), keep))
    for row, mask in enumerate(keep):
        figures = truth.measure(repair(victim, Mask.of(victim, mask)).model)
        assert (acc[row], asr[row]) == pytest.approx((figures["acc"], figures["asr"]))
    images = load_images(evaluation)
    others = images.subset(images.labels != 0)
    answers = predictions(victim.model, victim.normalisation(load_trigger(folder / "trigger.safetensors")(others.pixels())))
    assert truth.measure(victim.model)["asr"] == pytest.approx(float((answers == 0).double().mean()))


def outcome(seed, asr, seconds=2.0, where="here"):
    figures = {"acc_before": 0.9, "acc": 0.88, "asr_before": 1.0, "asr": asr, "ra_before": 0.0, "ra": 0.5}
    names = {"victim": "v", "attack": "a", "arch": "n", "data": "d", "defence": "clp", "decision": "repaired"}
    rest = {"seed": seed, "asr_untriggered": 0.01, "der": 0.9, "seconds": seconds, "asr_oracle": 0.0, "where": where}
    return names | figures | rest


def test_means_and_spread():
    text = as_markdown([outcome(0, 0.1), outcome(1, 0.3)], {"passes": 1})
    assert "| clp | 2 | 2.0 ± 0.0 | 20.0 ± 14.1 | 30.0 | 50.0 ± 0.0 | 0.900 ± 0.000 | 0.0 ± 0.0 | - | 2 ± 0 |" in text
    assert "Seconds are of" not in text


def test_seconds_of_different_machines_are_not_averaged():
    rows = [outcome(0, 0.1), outcome(1, 0.3, 900.0, "elsewhere"), outcome(2, 0.5, 4.0)]
    text = as_markdown(timed_alike(rows), {"passes": 1})
    assert "| clp | 3 | 2.0 ± 0.0 | 30.0 ± 20.0 |" in text and "| - | 3 ± 1 |" in text
    assert "Measured on: here.\nMeasured on: elsewhere.\nSeconds are of the machine that ran most cells." in text
    lines = as_csv(rows).splitlines()
    assert [line.rsplit(",", 2)[1:] for line in lines[1:]] == [["2.0", "here"], ["900.0", "elsewhere"], ["4.0", "here"]]
    failed = [{"victim": "v", "error": "no memory"}] * 5
    assert ["seconds" in row for row in timed_alike(rows + failed)] == [True, False, True] + [False] * 5


def _double(item):
    if item == 3:
        raise ValueError("three")
    return 2 * item


def _dies_once(item):
    """Kills its own worker the first time."""
    marker, cell = item
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(cell)


class _Cluster:
    """As much of Ray as `run_all` needs, in this process, with one GPU."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=KeyError)

    def __init__(self):
        self.options = []

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": 1.0}

    def remote(self, task):
        def options(**given):
            self.options.append(given)
            return SimpleNamespace(remote=task)

        return SimpleNamespace(options=options)

    def wait(self, waiting, num_returns):
        return waiting[:1], waiting[1:]

    def get(self, done):
        return done


def test_a_cell_takes_its_share_of_a_gpu(monkeypatch):
    cluster, limits = _Cluster(), []
    monkeypatch.setattr(pool, "_cluster", lambda address: contextlib.nullcontext(cluster))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    assert dict(run_all(_double, [1, 2], "auto", 3, gpu_share=0.25)) == {1: 2, 2: 4}
    assert cluster.options == [{"num_cpus": 3, "num_gpus": 0.25, "max_retries": 3}] and limits == [0.25, 0.25]
    assert dict(run_all(_double, [1], "auto")) == {1: 2} and limits == [0.25, 0.25], "a whole GPU has no limit"


def test_tasks_fail_alone():
    found = dict(run_all(_double, [1, 3, 2]))
    assert found[1] == 2 and found[2] == 4 and isinstance(found[3], ValueError)


def test_a_cluster_gives_the_same_and_survives_a_killed_worker(config, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work the workers would hardly run
    ray = pytest.importorskip("ray")
    victims = {row["victim"]: row for row in rows}
    cells = [
        Cell(files, "ft", 0, "default", 0.05, 1500, 1)
        for _, files in trainings(config, Path(config.out), Cuts(config, Path(config.out)))
    ]
    assert len(cells) == len(victims) == 2
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        found = {item[1].victim.name: got for item, got in run_all(_dies_once, [(tmp_path / "died", c) for c in cells], "auto")}
        failed = dict(run_all(_double, [3, 4], "auto"))
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists()
    assert isinstance(failed[3], ValueError) and failed[4] == 8
    for row in rows:
        if row["defence"] == "ft":
            got = found[row["victim"]]
            assert {key: value for key, value in got.items() if key != "seconds"} == {
                key: row[key] for key in got if key != "seconds"
            }
