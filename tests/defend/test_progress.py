"""Progress where there is no terminal: lines, JSON for machines, TensorBoard."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from onp import progress
from onp.defend import __main__ as cli
from onp.defend import run
from onp.defend.config import DefendConfig
from onp.defend.estimate import Estimate, estimate
from onp.defend.monitor import Monitor
from onp.errors import InputError
from onp.search.agent import Update

STEP = Update("pass 1", 2, 16, -0.25, 0.2, 0.01, 5, 1.5, 0.003, 0.1)


def test_lines_say_what_is_left_and_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    now = iter((0.0, 500.0, 510.0, 520.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with progress.stage("counting", 6) as bar:
        for _ in range(3):
            bar.advance(1, "note")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "counting ...", "nothing is known of the rate before the second step"
    assert said[1:] == ["counting: 2/6, about 40 s left note", "counting: 3/6, about 30 s left note"]
    monkeypatch.undo()
    with progress.stage("counting", 4, quiet=True) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""


def test_steps_of_an_earlier_run_are_counted_but_not_timed(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    now = iter((0.0, 1.0, 11.0, 12.0, 22.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with progress.stage("counting", 100) as bar:
        bar.advance(40, known=True)
        bar.advance(1)
        bar.advance(40, known=True)
        bar.advance(1)
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "counting: 41/100, about 590 s left" and said[-1] == "counting: 82/100, about 189 s left"


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
        tell = monitor.steps(bar)
        for evaluations in (16, 20):
            tell(replace(STEP, evaluations=evaluations))
    _, step, _, line = capsys.readouterr().err.splitlines()
    assert "block 2: 16 masks, reward -0.2500, surrogate ASR 0.2000" in step
    assert line.startswith("searching: 20/100, about ") and "best reward -0.250" in line


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
    monitor.pictures((picture.family, picture.triggered) for picture in outcome.diagnostics.pictures)
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("search/asr")
    assert (scalar.step, round(scalar.value, 6)) == (16, 0.2)
    assert events.Images("trigger/given")[0].width == 8


def test_tensorboard_that_is_missing_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("onp.defend.monitor.importlib.import_module", missing)
    with pytest.raises(InputError, match="pip install tensorboard"):
        Monitor(tensorboard=str(tmp_path))


def test_the_estimate_counts_passes(backdoored, small, monkeypatch):
    splits = small.case(backdoored.victim).splits
    monkeypatch.setattr("onp.defend.estimate._seconds", lambda victim, images: 1.0)
    found = estimate(backdoored.victim, splits, small.PRESET, search_only=False)
    # Classes x images x (families x steps + adversarial steps), and changed copies forwards only.
    assert found.look == 4 * 8 * (4 * 15 + 5) + 6 * 60 / 3
    assert found.repair == 2 * 4 * 2 * 15 * 8 + 100 * 2 * 60 / 6
    known = estimate(backdoored.victim, splits, small.PRESET, search_only=True)
    assert known.look == 0 and known.repair == 100 * 2 * 60 / 6
    text = "40 s to look for a trigger and, if there is one, 10 minutes more to repair it"
    assert str(Estimate(44.0, 600.0)) == text and str(Estimate(0.0, 7200.0)) == "2.0 hours to repair it"


def stop(*arguments):
    raise KeyboardInterrupt


def test_a_long_run_says_so_first(backdoored, small, monkeypatch, capsys):
    monkeypatch.setattr("onp.defend.estimate._seconds", lambda victim, images: 1.0)
    monkeypatch.setattr("onp.defend.look", stop)
    case = replace(small.case(backdoored.victim), known=None)
    for quiet in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(case, DefendConfig(quiet=quiet), small.PRESET, Monitor(quiet))
    assert capsys.readouterr().err.count("to look for a trigger and, if there is one,") == 1
