"""What goes with a case from stage to stage: files read once, plans made once, seeds, devices, and one import of the module."""

import inspect
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import onp
from onp import api, defend
from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.inputs import read_case
from onp.defend.run import Run
from onp.engine import plan as plans
from onp.errors import InputError
from onp.model import hub_config
from onp.numerics import derive_seed


def test_the_seeds_of_a_runs_parts():
    seeds = [derive_seed(7, purpose, number) for purpose, number in (("audit", 1), ("pass", 1), ("target", 2))]
    assert seeds == [1007, 107, 20_007]
    run = Run(DefendConfig(), None, seed=7)
    assert run.fork("target", 0).seed == 7 and run.fork("target", 1).fork("pass").seed == 10_107
    assert run.fork("audit").config is run.config


def test_the_plan_of_a_network_is_made_once(small, backdoored, monkeypatch):
    """The real maker of plans, counted by network and by the values that are to be kept."""
    made, make = Counter(), plans._Fuser.plan
    networks = []  # none is freed, so that no two have one id

    def counted(fuser):
        networks.append(fuser.victim)
        made[id(fuser.victim), fuser.keep] += 1
        return make(fuser)

    monkeypatch.setattr(plans._Fuser, "plan", counted)
    victim = small.victim_of(backdoored.victim.model)
    case = replace(small.case(victim), known_trigger=None)
    run_pipeline(case, Run(DefendConfig(quiet=True), small.PRESET))
    assert made[id(victim), frozenset()] == 1 and set(made.values()) == {1}


class Tiny(nn.Module):
    """A network of a timm-like package."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def test_a_config_json_is_read_once(tmp_path, monkeypatch):
    class Package:
        @staticmethod
        def create_model(name, pretrained, num_classes, in_chans):
            return Tiny(num_classes)

    monkeypatch.setitem(sys.modules, "timm", Package)
    torch.manual_seed(0)
    images = torch.zeros(80, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    images[labels == 1] = 255
    network = Tiny(2)
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network((images + torch.rand(80, 1, 8, 8) * 9) / 255), labels).backward()
        optimiser.step()
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    trained = {"input_size": [1, 8, 8], "mean": [0.0], "std": [1.0], "label_names": ["0", "1"]}
    (folder / "config.json").write_text(json.dumps({"architecture": "tiny", "num_classes": 2, "pretrained_cfg": trained}))
    np.savez(tmp_path / "clean.npz", images=images.numpy(), labels=labels.numpy())

    reads, read = Counter(), hub_config._json

    def counted(path):
        reads[path.name] += 1
        return read(path)

    monkeypatch.setattr(hub_config, "_json", counted)
    config = DefendConfig(model=str(folder), data=str(tmp_path / "clean.npz"), out=str(tmp_path / "out"), quiet=True)
    with Run.open(config) as run:
        case = read_case(run)
        assert case.victim.arch == "timm tiny" and run.hub is not None
        assert hub_config.companions(case.victim.checkpoint.path, run.hub) == [folder / "config.json"]
    assert reads["config.json"] == 1


def test_a_run_that_ends_leaves_no_state_and_one_that_fails_keeps_it(tmp_path):
    config = DefendConfig(demo="badnets", out=str(tmp_path / "out"), quiet=True)
    with pytest.raises(KeyboardInterrupt), Run.open(config) as run:
        run.begin(read_case(run))
        raise KeyboardInterrupt
    assert {path.name for path in (tmp_path / "out" / "state").iterdir()} == {"run.json", "seconds.jsonl"}
    with pytest.raises(InputError, match="unfinished run"), Run.open(config):
        pass
    with Run.open(replace(config, resume=True)) as run:
        run.begin(read_case(run))
        assert run.store.spent > 0 and run.seconds > run.store.spent
    assert not (tmp_path / "out" / "state").exists()


def test_a_gpu_that_fails_is_left_or_named(tmp_path, capsys):
    runs = []

    def work(run):
        runs.append(run)
        if len(runs) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with Run.open(DefendConfig(demo="badnets", out=str(tmp_path / "out"), quiet=True)) as run:
        assert run.with_fallback(work) == "done"
    assert [each.config.device for each in runs] == ["auto", "cpu"] and runs[1].device.type == "cpu"
    assert capsys.readouterr().err == "The GPU has too little memory; going on without it.\n"

    def lost(run):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    config = DefendConfig(demo="badnets", out=str(tmp_path / "other"), device="cpu", quiet=True)
    with (
        pytest.raises(InputError, match=r"does not answer any more; use fewer images .* What was worked out"),
        Run.open(config) as run,
    ):
        run.with_fallback(lost)

    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()):

        def full(run, error=error):
            raise error

        with pytest.raises(InputError, match=r"machine has too little memory; use fewer images or --device cpu\.$"):
            Run(DefendConfig(), None).with_fallback(full)

    def wrong(run):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Run(DefendConfig(), None).with_fallback(wrong)


def test_the_package_is_imported_once_and_detect_is_the_function():
    code = (
        "import runpy, sys, builtins; sys.argv = ['onp.defend', '--list-demos']\n"
        "try: runpy.run_module('onp.defend', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "files = [getattr(m, '__file__', None) for m in list(sys.modules.values())]\n"
        "import onp\n"
        "assert files.count(onp.defend.__file__) == 1, files\n"
        "assert callable(onp.detect) and onp.detect is onp.api.detect\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    command = [sys.executable, "-W", "error", "-X", "importtime", "-m", "onp.defend", "--list-demos"]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.returncode == 0 and imported.count("onp.defend") == 1
    assert onp.detect is api.detect and onp.defend.defend is defend.defend


def test_the_pipeline_is_one_page():
    assert len(inspect.getsource(defend).splitlines()) < 120
