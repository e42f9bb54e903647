"""The command line of `onp attack`."""

import shlex

import numpy as np
from helpers.easy_victims import ARCH, easy_images

from onp.attack.__main__ import main
from onp.attack.triggers import TRIGGERS, load_trigger
from onp.defend.__main__ import COMMAND as DEFEND


def test_help_names_every_attack(capsys):
    assert main(["--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, kind in TRIGGERS.items():
        assert f"{name:<17}{kind.summary}" in lines


def test_command_line(tmp_path, capsys):
    for name, data in (("train", easy_images(97)), ("test", easy_images(60, 1))):
        np.savez(tmp_path / f"{name}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    arguments = [
        "--attack",
        "blended",
        "--arch",
        ARCH,
        "--norm",
        "half",
        "--data",
        str(tmp_path / "train.npz"),
        "--test-data",
        str(tmp_path / "test.npz"),
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "ASR" in shown and (tmp_path / "out" / "model.safetensors").exists()
    command = shlex.split(shown.splitlines()[-1].partition(": ")[2])
    options = DEFEND.options(command[2:])
    assert command[:2] == ["onp", "defend"] and options.arch == ARCH and options.norm == "half"
    assert options.eval_trigger == str(tmp_path / "out" / "trigger.safetensors")
    for more in (("--arch", "vgg12"), ("--attack", "sig"), ("--out", str(tmp_path / "train.npz" / "out"))):
        assert main([*arguments, *more]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
    assert load_trigger(tmp_path / "out" / "trigger.safetensors").name == "blended"
