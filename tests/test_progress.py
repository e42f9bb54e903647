"""Progress where there is no terminal: lines, JSON for machines, TensorBoard."""

import json

import pytest

from onp import cli, progress
from onp.agent import Update
from onp.errors import InputError
from onp.monitor import Monitor

STEP = Update("pass 1", 2, 16, -0.25, 0.2, 0.01, 5, 1.5, 0.003, 0.1)


def test_lines_say_what_is_left_and_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.stage("counting", 4) as bar:
        bar.advance(3, "note")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "counting ..." and said[1].startswith("counting: 3/4, about ") and said[1].endswith("note")
    with progress.stage("counting", 4, quiet=True) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""


def test_machines_are_told_in_json(capsys):
    monitor = Monitor(machine=True)
    with monitor.stage("searching", 100) as bar:
        monitor.steps(bar)(STEP)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in events] == ["stage", "step", "stage end"]
    assert events[1]["evaluations"] == 16 and events[1]["phi"] == -0.25 and list(monitor.seconds) == ["searching"]


def test_a_step_says_masks_reward_and_attack(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monitor = Monitor(verbose=True)
    with monitor.stage("searching", 100) as bar:
        monitor.steps(bar)(STEP)
    _, step, line = capsys.readouterr().err.splitlines()
    assert "block 2: 16 masks, reward -0.2500, surrogate ASR 0.2000" in step
    assert line.startswith("searching: 16/100, about ") and "best reward -0.250" in line


def test_json_prints_the_report_alone(outcome, monkeypatch, capsys):
    monkeypatch.setattr(cli, "defend", lambda config: outcome)
    assert cli.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "repaired"


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert cli.main(["--quiet", "--verbose"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_search_and_the_trigger(outcome, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(quiet=True, tensorboard=str(tmp_path))
    with monitor.stage("searching", 100) as bar:
        monitor.steps(bar)(STEP)
    monitor.pictures(outcome.details.pictures)
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("search/asr")
    assert (scalar.step, round(scalar.value, 6)) == (16, 0.2)
    assert events.Images("trigger/given")[0].width == 8


def test_tensorboard_that_is_missing_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("onp.monitor.importlib.import_module", missing)
    with pytest.raises(InputError, match="pip install tensorboard"):
        Monitor(tensorboard=str(tmp_path))
