"""The comparison: a whole small matrix, its files, a killed run, a failing cell."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_tables import FIGURES, figures_at_once

from onp.compare import compare
from onp.compare.__main__ import main
from onp.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_every_cell_ran_once_and_has_its_figures(config, rows):
    kept = list((Path(config.out) / "cells").iterdir())
    assert len(rows) == len(kept) == 6 and not any("error" in row for row in rows)
    attacked = [row for row in rows if row["attack"] == "blended"]
    assert [row["defence"] for row in attacked] == ["clp", "fp+ft", "ft"]
    for row in attacked:
        assert row["acc_before"] > 0.9 and row["asr_before"] > 0.5
        assert (
            0 <= row["asr"] <= 1
            and 0 <= row["ra"] <= 1
            and {"acc_reactivated", "asr_reactivated", "asr_poisoned"} <= row.keys()
        )
        lost = max(0, row["acc_before"] - row["acc"])
        assert row["der"] == pytest.approx((max(0, row["asr_before"] - row["asr"]) - lost + 1) / 2)
        assert row["seconds"] > 0
    for row in rows:
        assert ("asr" in row) == ("asr_poisoned" in row) == (row["attack"] == "blended")
    clp = attacked[0]
    within = [
        asr for acc, asr in zip(clp["curve"]["acc"], clp["curve"]["asr"], strict=True) if clp["acc_before"] - acc <= 0.05 + 1e-9
    ]
    assert clp["asr_oracle"] == min([clp["asr_before"], *within]) and clp["evaluations"] >= 1
    assert "asr_oracle" not in attacked[2], "a tuning has no threshold"


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


def test_a_second_run_computes_nothing(config, rows):
    def again(item):
        pytest.fail("a finished cell ran again, or a victim was trained again")

    assert compare(config, again, again) == rows


def test_a_failing_cell_is_in_the_table_and_runs_again(config, rows, tmp_path):
    calls = []

    def fails_once(cell):
        calls.append(cell.key)
        if len(calls) == 1:
            raise RuntimeError("no luck\nat all")
        return FIGURES

    victim = str(Path(config.out) / "victims" / rows[0]["victim"])
    other = replace(config, out=str(tmp_path / "table"), attacks=(), victims=(victim,), data=(), defences=("ft", "clp"))
    first = compare(other, fails_once)
    assert [row.get("error") for row in first] == ["RuntimeError: no luck at all", None]
    assert (
        "- " + rows[0]["victim"] + ", ft, seed 0: RuntimeError: no luck at all" in (tmp_path / "table/results.md").read_text()
    )
    again = compare(other, fails_once)
    assert len(calls) == 3 and not any("error" in row for row in again)


def test_a_victim_that_cannot_be_trained_fails_its_cells_only(config, rows, tmp_path):
    def refuses(training):
        raise InputError("the disk is full")

    victim = str(Path(config.out) / "victims" / rows[0]["victim"])
    table = replace(config, out=str(tmp_path / "t"), victims=(victim,), attacks=("badnets",), defences=("ft",))
    found = compare(table, figures_at_once, refuses)
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


@pytest.mark.parametrize("wrong", [{"attacks": ("blended", "magic")}, {"test_data": ("nowhere",)}, {"clean": 290}])
def test_what_cannot_be_used_leaves_no_folder_behind(config, wrong, tmp_path):
    """So that the command put right is not refused for its other settings; the first attack's images were cut before."""
    with pytest.raises(InputError):
        compare(replace(config, out=str(tmp_path / "t"), **wrong))
    assert not (tmp_path / "t").exists()
