"""Runs that survive: killed ones end in the same mask, full disks and lost GPUs in one sentence."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onp.attack.triggers import BadNets
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.folder import WRITTEN
from onp.defend.inputs import read_case
from onp.defend.run import Run
from onp.errors import InputError
from onp.model.mask import load_mask
from onp.resume import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(small, backdoored, tmp_path_factory):
    """The tiny victim, its trigger as a file that moves it to the corner, and clean images, as a user would give them."""
    folder = tmp_path_factory.mktemp("given")
    save_file(backdoored.victim.model.state_dict(), folder / "suspect.safetensors")
    clean = small.clean_images()
    np.savez(folder / "clean.npz", images=clean.images.numpy(), labels=clean.labels.numpy())
    pattern = small.stamp(torch.full((1, 1, 8, 8), 0.25))[0, :, 3:5, 3:5]
    BadNets(torch.nn.functional.pad(pattern, (0, 3, 0, 3), value=0.25)).save(folder / "trigger.safetensors")
    return folder


@pytest.fixture
def config(files, monkeypatch):
    """A run on those files; `network` is imported from the tests' folder."""
    monkeypatch.chdir(ROOT / "tests")
    return DefendConfig(
        model=str(files / "suspect.safetensors"),
        arch="helpers.small_backdoor:network",
        data=str(files / "clean.npz"),
        norm="none",
        trigger=str(files / "trigger.safetensors"),
        preset="fast",
        max_acc_drop=0.05,
        quiet=True,
    )


def command(config, out, *more):
    given = {"model": config.model, "arch": config.arch, "data": config.data, "norm": config.norm, "trigger": config.trigger}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    wanted = ("--preset", "fast", "--max-acc-drop", "0.05", "--quiet", "--out", str(out), *more)
    return [sys.executable, "-m", "onp.defend", *options, *wanted]


def test_a_killed_run_ends_in_the_mask_of_an_unbroken_one(config, tmp_path):
    whole = defend(replace(config, out=str(tmp_path / "whole")))
    assert whole.report.pruned_count > 0
    assert not (tmp_path / "whole" / "state").exists()
    assert {path.name for path in (tmp_path / "whole").iterdir()} <= {"suspect.safetensors", *WRITTEN}  # names that are refused
    out = tmp_path / "killed"
    scored = out / "state" / "scores-0.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seed = int(os.environ.get("ONP_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"ONP_TEST_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(2):
        before = scored.stat().st_size if scored.exists() else 0
        process = subprocess.Popen(
            command(config, out, "--resume"), cwd=ROOT / "tests", env=environment, stderr=subprocess.PIPE
        )
        # Somewhere after the first new masks of this run: the work begins only once torch is imported.
        while process.poll() is None and (not scored.exists() or scored.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.7))
        process.kill()
        process.communicate()
    if not (out / "report.json").exists():  # always, unless both runs finished before they were killed
        resumed = defend(replace(config, out=str(out), resume=True))
        assert torch.equal(resumed.mask.keep, whole.mask.keep)
    assert torch.equal(load_mask(out / "mask.json").keep, whole.mask.keep)
    assert (out / "suspect.safetensors").read_bytes() == (tmp_path / "whole" / "suspect.safetensors").read_bytes()
    assert not (out / "state").exists()


def test_a_full_disk_is_one_sentence_and_loses_nothing(config, tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    full = subprocess.run(
        command(config, out),
        cwd=ROOT / "tests",
        env=environment,
        capture_output=True,
        text=True,
        # A file may not grow beyond some masks, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert full.returncode == 2 and full.stdout == ""
    assert full.stderr.startswith("error: ") and full.stderr.count("\n") == 1 and "--resume" in full.stderr, full.stderr
    kept = (out / "state" / "scores-0.jsonl").read_text().splitlines()
    assert len(json.loads(kept[0])["masks"]) == 1
    assert not (out / "report.json").exists()


def test_runs_are_not_mixed_up(config, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        Store(out).begin({"seed": 0, "model": "a"})
    with pytest.raises(InputError, match=r"another seed \(0, now 1\)"):
        Store(out).begin({"seed": 1, "model": "a"})
    with pytest.raises(InputError, match="unfinished run"):
        defend(replace(config, out=str(out)))
    with pytest.raises(InputError, match="started with another"):
        defend(replace(config, out=str(out), resume=True))
    with pytest.raises(InputError, match="needs --out"):
        defend(replace(config, resume=True))


def test_another_trigger_under_the_same_name_is_another_run(config, tmp_path):
    moved = tmp_path / "trigger.safetensors"
    moved.write_bytes(Path(config.trigger).read_bytes())
    given = replace(config, trigger=str(moved), out=str(tmp_path / "out"))
    for wanted in (given, replace(given, resume=True)):
        with pytest.raises(KeyboardInterrupt), Run.open(wanted) as run:
            run.begin(read_case(run))
            raise KeyboardInterrupt
    BadNets(torch.full((1, 8, 8), 0.5)).save(moved)
    with pytest.raises(InputError, match="started with another trigger"):
        defend(replace(given, resume=True))


def test_the_time_of_earlier_runs_counts(tmp_path):
    spent = []
    for _ in range(3):
        store = Store(tmp_path)
        store.begin({})
        time.sleep(0.01)
        store.pause()
        spent.append(store.spent)
    assert spent[0] == 0 and spent[1] >= 0.01 - 1e-3 and spent[2] >= spent[1] + 0.01 - 1e-3


def test_what_was_computed_is_read_bit_by_bit(tmp_path, rng):
    store = Store(tmp_path)
    store.begin({})
    values = store.tensors("values", lambda: {"a": torch.randn(3, generator=rng), "b": torch.tensor([True])})
    again = Store(tmp_path)
    again.begin({})
    read = again.tensors("values", dict)
    assert read.keys() == values.keys() and all(torch.equal(read[name], values[name]) for name in values)


def test_a_last_line_that_was_cut_off_is_dropped_from_the_file(tmp_path):
    store = Store(tmp_path)
    store.begin({})
    assert store.lines("numbers.jsonl", dict) == []
    store.append("numbers.jsonl", '{"n": 1}')
    with (store.folder / "numbers.jsonl").open("a") as file:
        file.write('{"n": ')
    assert store.lines("numbers.jsonl", lambda line: line["n"]) == [1]
    assert (store.folder / "numbers.jsonl").read_text() == '{"n": 1}\n'


DAMAGED = [
    b"7", b"null", b"[]", b"{", b"{}", b'{"n": "x"}', b'{"n": null}', b'{"n": []}', b'{"n": ' + b"9" * 5000 + b"}", b"\xff",
    b'{"n": 1e999999999999}' + b"\x00", b"[" * 100_000, b'{"n": 1' + b"0" * 400 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_sentence(tmp_path, line):
    store = Store(tmp_path)
    store.begin({})
    (store.folder / "numbers.jsonl").write_bytes(b'{"n": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"numbers\.jsonl is damaged; remove it and go on with --resume\.$"):
        store.lines("numbers.jsonl", lambda line: float(line["n"]))
    (store.folder / "seconds.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"seconds\.jsonl is damaged"):
        Store(tmp_path).begin({})
    (store.folder / "values.safetensors").write_bytes(line)
    with pytest.raises(InputError, match=r"values\.safetensors is damaged"):
        store.tensors("values", dict)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_run_that_cannot_be_told_is_not_continued(tmp_path, content):
    Store(tmp_path).begin({})
    (tmp_path / "state" / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged; give --out another folder\.$"):
        Store(tmp_path).begin({})
