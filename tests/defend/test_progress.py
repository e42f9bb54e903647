"""Progress where there is no terminal: lines, JSON for machines, TensorBoard."""

import json
import sys
from dataclasses import replace

import pytest

from onp import progress
from onp.defend.__main__ import main, show
from onp.defend.config import DefendConfig
from onp.defend.monitor import Monitor
from onp.errors import InputError
from onp.progress import Pace
from onp.search.course import Update

STEP = Update("pass 1", 2, 16, -0.25, 0.2, 0.01, 5, 1.5, 0.003, 0.1)


def at(*seconds):
    """A line at every step, by a clock that reads these times."""
    return Pace(lines=0.0, clock=iter(seconds).__next__)


def test_lines_say_what_is_left_and_quiet_says_nothing(capsys):
    with progress.stage("counting", 6, pace=at(0.0, 500.0, 510.0, 520.0)) as bar:
        for _ in range(3):
            bar.advance(1, "note")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "counting ...", "nothing is known of the rate before the second step"
    assert lines[1:] == ["counting: 2/6, about 40 s left note", "counting: 3/6, about 30 s left note"]
    with progress.stage("counting", 4, quiet=True, pace=Pace(lines=0.0)) as bar:
        bar.advance(2)
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_lines_are_seconds_apart(capsys):
    with progress.stage("counting", 9, pace=replace(at(0.0, 1.0, 3.0, 12.0, 13.0), lines=10.0)) as bar:
        for _ in range(4):
            bar.advance()
    assert capsys.readouterr().err.splitlines()[1:] == ["counting: 3/9, about 33 s left"]


def test_steps_of_an_earlier_run_are_counted_but_not_timed(capsys):
    with progress.stage("counting", 100, pace=at(0.0, 1.0, 11.0, 12.0, 22.0)) as bar:
        bar.advance(40, known=True)
        bar.advance(1)
        bar.advance(40, known=True)
        bar.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "counting: 41/100, about 590 s left" and lines[-1] == "counting: 82/100, about 189 s left"


def test_machines_read_json(capsys):
    monitor = Monitor(machine=True)
    with monitor.stage("searching", 100) as bar:
        monitor.search_progress(bar)(STEP)
    monitor.note("a line")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in events] == ["stage", "step", "stage end", "note"]
    assert events[1]["evaluations"] == 16 and events[1]["phi"] == -0.25 and list(monitor.seconds) == ["searching"]


def test_a_step_says_masks_reward_and_attack(capsys):
    monitor = Monitor(verbose=True, pace=Pace(lines=0.0))
    with monitor.stage("searching", 100) as bar:
        update = monitor.search_progress(bar)
        for evaluations in (16, 20):
            update(replace(STEP, evaluations=evaluations))
    _, step, _, line = capsys.readouterr().err.splitlines()
    assert "block 2: 16 masks, reward -0.2500, surrogate ASR 0.2000" in step
    assert line.startswith("searching: 20/100, about ") and "best reward -0.250" in line


def test_another_agent_run_counts_its_masks_anew():
    monitor = Monitor(quiet=True)
    with monitor.stage("searching", 100) as bar:
        update = monitor.search_progress(bar)
        for evaluations in (16, 20, 5, 9):
            update(replace(STEP, evaluations=evaluations))
        assert bar.done == 29


def test_the_time_of_a_stage_that_is_made_twice_adds_up():
    monitor = Monitor(quiet=True)
    for _ in range(2):
        with monitor.stage("searching"):
            pass
        once = dict(monitor.seconds)
    assert list(monitor.seconds) == ["searching"] and monitor.seconds["searching"] >= once["searching"] > 0


def test_json_prints_the_report_alone(outcome, capsys):
    assert show(outcome, DefendConfig(json=True)) == 1
    assert json.loads(capsys.readouterr().out)["decision"] == "repaired"


def test_what_is_printed_and_the_exit_code_follow_the_decision(outcome, capsys):
    assert show(outcome, DefendConfig()) == 1 and show(outcome, DefendConfig(quiet=True, fail_on="never")) == 0
    assert capsys.readouterr().out.endswith("give --out DIR to keep the repaired checkpoint and the report.\n")
    failed = replace(outcome, report=replace(outcome.report, decision="not-repairable"))
    assert show(failed, DefendConfig(out="here")) == 3
    assert capsys.readouterr().out.endswith("Written to here; open report.html there in a browser.\n")


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert main(["--quiet", "--verbose"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--no-repair", "--tune", "ft"], ["--verify", "--shrink"]])
def test_what_follows_a_repair_needs_one(options, capsys):
    assert main(options) == 2
    assert f"{options[1]} needs a repair; leave it out, or {options[0]}." in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_search_and_the_trigger(outcome, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(quiet=True, tensorboard=str(tmp_path))
    with monitor.stage("searching", 100) as bar:
        monitor.search_progress(bar)(STEP)
    monitor.pictures((picture.family, picture.triggered) for picture in outcome.diagnostics.pictures)
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("search/asr")
    assert (scalar.step, round(scalar.value, 6)) == (16, 0.2)
    assert events.Images("trigger/known")[0].width == 8


def test_tensorboard_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        Monitor(tensorboard=str(tmp_path))
