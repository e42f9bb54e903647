"""The README's commands, exactly as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onp.defend.demos import clean_images, demo

ROOT = Path(__file__).resolve().parents[1]


def commands(section):
    """The lines of the `bash` blocks under the README's heading `section`."""
    text = (ROOT / "README.md").read_text()
    body = re.split(r"^## ", text, flags=re.MULTILINE)
    (part,) = [block for block in body if block.startswith(section)]
    return [line for block in re.findall(r"```bash\n(.*?)```", part, re.DOTALL) for line in block.splitlines() if line]


def run(command, folder, path):
    environment = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_there_are_two_commands():
    first, second = commands("Two commands")
    assert first.endswith("python -m onp.defend") and second.endswith("pytest")


@pytest.mark.skipif("ONP_TEST_INSTALL" not in os.environ, reason="set ONP_TEST_INSTALL=1: installs into a fresh environment")
def test_the_first_command_on_a_fresh_machine(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    copy = tmp_path / "onp"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "*.so", "__pycache__", ".*_cache"))
    said = run(commands("Two commands")[0], copy, tmp_path / "venv" / "bin")
    assert "Decision: repaired" in said


def test_your_own_model(tmp_path):
    victim = demo("badnets")
    shutil.copy(victim.model, tmp_path / "suspect.safetensors")
    images = clean_images()
    for index in range(len(images)):
        folder = tmp_path / "clean" / images.class_names[int(images.labels[index])].replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[index, 0].numpy()).save(folder / f"{index:04}.png")
    for command in commands("Your own model"):
        run(command, tmp_path, Path(sys.executable).parent)
    assert {"suspect.safetensors", "mask.json", "report.json", "report.txt"} <= {
        path.name for path in (tmp_path / "repaired").iterdir()
    }


def test_training_a_victim(tmp_path):
    images = clean_images()
    for name, some in (("train.npz", images.subset(range(400))), ("test.npz", images.subset(range(400, 500)))):
        np.savez(tmp_path / name, images=some.images.numpy(), labels=some.labels.numpy())
    for command in commands("Victims to practise on"):
        run(command, tmp_path, Path(sys.executable).parent)
    assert (tmp_path / "victim" / "model.safetensors").exists()
