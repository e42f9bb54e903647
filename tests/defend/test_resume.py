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

from onp import defend as module
from onp.attack.triggers import BadNets
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.engine.evaluator import Evaluator
from onp.errors import InputError
from onp.model.mask import Mask, load_mask
from onp.resume import State, kept_in, recalled, recorded, spent_before

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
    State(out, {"seed": 0, "model": "a"})
    State(out, {"seed": 0, "model": "a"})
    with pytest.raises(InputError, match=r"another seed \(0, now 1\)"):
        State(out, {"seed": 1, "model": "a"})
    with pytest.raises(InputError, match="unfinished run"):
        defend(replace(config, out=str(out)))
    with pytest.raises(InputError, match="started with another"):
        defend(replace(config, out=str(out), resume=True))
    with pytest.raises(InputError, match="needs --out"):
        defend(replace(config, resume=True))


def test_another_trigger_under_the_same_name_is_another_run(config, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", stop)
    moved = tmp_path / "trigger.safetensors"
    moved.write_bytes(Path(config.trigger).read_bytes())
    given = replace(config, trigger=str(moved), out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        defend(given)
    with pytest.raises(KeyboardInterrupt):
        defend(replace(given, resume=True))
    BadNets(torch.full((1, 8, 8), 0.5)).save(moved)
    with pytest.raises(InputError, match="started with another trigger"):
        defend(replace(given, resume=True))


def test_the_time_of_earlier_runs_counts(backdoored, tmp_path, rng):
    masks = torch.rand((5, backdoored.victim.units), generator=rng) < 0.9
    with pytest.raises(KeyboardInterrupt), kept_in(State(tmp_path, {})):
        first = recorded(Evaluator(backdoored.victim, backdoored.score, backdoored.score_triggered), "scores")
        first.score(masks)
        time.sleep(0.01)
        raise KeyboardInterrupt
    with kept_in(State(tmp_path, {})):
        assert spent_before() >= 0.01
        again = recorded(Evaluator(backdoored.victim, backdoored.score, backdoored.score_triggered), "scores")
        again.score(masks)
        assert again.seconds == pytest.approx(first.seconds) and again.seconds > 0
    assert spent_before() == 0


def test_a_gpu_that_fails_is_left_or_named(config, outcome, tmp_path, monkeypatch, capsys):
    devices = []

    def failing(case, config, preset, monitor):
        devices.append(config.device)
        if len(devices) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outcome

    monkeypatch.setattr(module, "run", failing)
    assert defend(replace(config, out=str(tmp_path / "out"))) is outcome
    assert devices == ["auto", "cpu"]
    assert capsys.readouterr().err == "The GPU has too little memory; going on without it.\n"

    def lost(*_):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(module, "run", lost)
    with pytest.raises(InputError, match=r"does not answer any more; use fewer images .* What was worked out"):
        defend(replace(config, out=str(tmp_path / "other"), device="cpu"))
    assert (tmp_path / "other" / "state" / "run.json").exists()

    def wrong(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(module, "run", wrong)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        defend(replace(config, device="cpu"))


def test_what_was_worked_out_is_read_bit_by_bit(backdoored, tmp_path, rng):
    state = State(tmp_path, {})
    victim = backdoored.victim
    masks = torch.rand((7, victim.units), generator=rng) < 0.9
    with kept_in(state):
        evaluator = Evaluator(victim, backdoored.score, backdoored.score_triggered)
        expected = recorded(evaluator, "scores").score(masks)
        values = recalled("values", lambda: {"a": torch.randn(3, generator=rng)})
    with (tmp_path / "state" / "scores.jsonl").open("a") as file:
        file.write(
            json.dumps({"masks": [np.packbits(masks[0].numpy()).tobytes().hex()], "scores": [{"acc": 7.0}]}) + "\n"
        )  # older
        file.write('{"masks": ["00')  # cut off by a kill
    with kept_in(State(tmp_path, {})):
        again = Evaluator(victim, backdoored.score, backdoored.score_triggered)
        one = recorded(again, "scores")
        scores = one.score(masks)
        assert again.evaluations == 0
        for name in ("acc", "asr", "divergence", "acc_soft", "asr_soft", "acc_count", "asr_count"):
            assert torch.equal(getattr(scores, name), getattr(expected, name)), name
        assert torch.equal(recalled("values", dict)["a"], values["a"])
        one.commit(masks[0])
        fresh = ~masks[:1]
        more = one.score(torch.cat((masks[:2], fresh)))
        assert again.evaluations == 1 and torch.equal(more.asr[:2], expected.asr[:2])
    rest = Evaluator(victim, backdoored.score, backdoored.score_triggered).score(fresh)
    torch.testing.assert_close(more.divergence[2:], rest.divergence)
    assert len((tmp_path / "state" / "scores.jsonl").read_text().splitlines()) == 3


def test_nothing_is_kept_without_a_state(backdoored):
    evaluator = Evaluator(backdoored.victim, backdoored.score, backdoored.score_triggered)
    assert recorded(evaluator, "scores") is evaluator and recalled("x", dict) == {}
    assert Mask.of(backdoored.victim).keep.all()
