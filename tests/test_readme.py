"""The README's commands, exactly as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]


def blocks(section, language="bash"):
    """The code blocks of one language under the README's heading `section`."""
    parts = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (part,) = [block for block in parts if block.startswith(section)]
    return re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)


def commands(section):
    """The lines of the `bash` blocks under the README's heading `section`."""
    return [line for block in blocks(section) for line in block.splitlines() if line]


def run(command, folder, path):
    environment = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A folder with the package at its place in a checkout, which takes what the commands write."""
    (tmp_path / "onp").symlink_to(ROOT / "onp")
    return tmp_path


def test_there_are_two_commands():
    first, second = commands("Install and run")
    assert first.endswith("python -m onp.defend") and second.endswith("pytest")


def test_it_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.skipif("ONP_TEST_INSTALL" not in os.environ, reason="set ONP_TEST_INSTALL=1: installs into a fresh environment")
def test_the_first_command_on_a_fresh_machine(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    copy = tmp_path / "onp"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "*.so", "__pycache__", ".*_cache"))
    printed = run(commands("Install and run")[0], copy, tmp_path / "venv" / "bin")
    assert "Decision: repaired" in printed


def test_your_own_model(checkout):
    own, victim, its_repair = commands("Your own model")
    for command in (own, victim, its_repair):
        printed = run(command, checkout, Path(sys.executable).parent)
        assert "Decision: repaired" in printed or command == victim
    names = {path.name for path in (checkout / "repaired").iterdir()}
    assert {"model.safetensors", "mask.json", "report.html", "report.json", "report.txt"} <= names
    before, after = (load_file(checkout / folder / "model.safetensors") for folder in ("victim", "victim-repaired"))
    assert before.keys() == after.keys()


def test_the_python_calls(checkout):
    (code,) = blocks("Your own model", "python")
    (checkout / "example.py").write_text(code + "assert evidence.backdoored and outcome.report.decision == 'repaired'\n")
    run("python example.py", checkout, Path(sys.executable).parent)
