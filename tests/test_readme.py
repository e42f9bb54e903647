"""The README's commands, exactly as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from onp.defend.decision import DECISIONS, exit_code

ROOT = Path(__file__).resolve().parents[1]


def blocks(section, language="bash"):
    """The code blocks of one language under the README's heading `section`."""
    parts = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (part,) = [block for block in parts if block.startswith(section)]
    return re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)


def commands(section):
    """The lines of the `bash` blocks under the README's heading `section`."""
    return [line for block in blocks(section) for line in block.splitlines() if line]


def run(command, folder, codes=(0,)):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode in codes, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A folder with the package at its place in a checkout, which takes what the commands write."""
    (tmp_path / "onp").symlink_to(ROOT / "onp")
    return tmp_path


def test_there_are_two_commands():
    """`.ci/run` gives them as they stand, in a fresh environment."""
    first, second = commands("Install and run")
    assert first.endswith("&& onp defend") and second.endswith("&& pytest")


def test_it_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


def test_every_decision_is_in_the_table_with_its_exit_code():
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(decision, str(exit_code(decision))) for decision in DECISIONS]


def test_your_own_model(checkout):
    scan, defend, verify = commands("Your own model")
    assert "backdoor-evidence" in run(scan, checkout, (1,))
    assert re.search("Decision: (partly-)?repaired", run(defend, checkout, (1,)))
    written = {path.name for path in (checkout / "repaired").iterdir()}
    assert {"model.safetensors", "mask.json", "model_card.md", "config.toml"} <= written
    assert {f"report.{kind}" for kind in ("html", "json", "sarif", "txt")} <= written
    original = ROOT / "onp" / "bundle" / "badnets"
    before, after = (load_file(folder / "model.safetensors") for folder in (original, checkout / "repaired"))
    assert before.keys() == after.keys()
    assert re.search("Decision: (no-backdoor-evidence|inconclusive)", run(verify, checkout))


def test_the_python_calls(checkout):
    (code,) = blocks("Your own model", "python")
    (checkout / "example.py").write_text(code + "assert evidence.backdoored and outcome.report.pruned_count\n")
    run("python example.py", checkout)
