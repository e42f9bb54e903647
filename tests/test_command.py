"""What all commands do alike: subcommands, options from files, exit codes, errors for people and machines, closed pipes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import onp
from onp.__main__ import COMMANDS, main
from onp.attack.__main__ import COMMAND as ATTACK
from onp.command import BUG, INTERRUPTED, UNUSABLE, Command
from onp.compare.__main__ import COMMAND as COMPARE
from onp.compare.config import CompareConfig
from onp.config_file import MAX_BYTES, read_config, write_config
from onp.defend.__main__ import COMMAND as DEFEND
from onp.defend.__main__ import main as defend_main
from onp.defend.config import DefendConfig
from onp.defend.decision import EVIDENCE, NOT_REPAIRABLE, NOTHING
from onp.errors import InputError
from onp.options import option
from onp.scan.__main__ import COMMAND as SCAN
from onp.version import VERSION

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """One option of each kind."""

    name: str | None = option(None, "a name", metavar="NAME", required=True)
    times: int = option(1, "how often")
    share: float = option(0.5, "how much", group="numbers")
    kind: str = option("a", "which", choices=("a", "b"))
    places: tuple[str, ...] = option((), "where", metavar="PATH")
    flip: bool = option(True, "no flips")
    out: str | None = option(None, "where to")
    json: bool = option(False, "for machines")


def command(work=lambda config: 0):
    return Command("try", Options, work, description="Tries.", lists=(("--list", "list them", "one\ntwo"),))


def python(*arguments, **more):
    """A Python process that sees the package in this checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, **more)


def test_help_has_a_line_for_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:<9}{text}\n" in shown for name, text in COMMANDS.items()) and "examples:" in shown


@pytest.mark.parametrize("arguments", [[], ["scam"], ["--nope"]])
def test_what_is_no_command_is_one_sentence(arguments, capsys):
    assert main(arguments) == UNUSABLE
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "version"])
def test_every_command_has_a_version_and_help_in_groups(name, capsys):
    assert main([name, "--version"]) == 0
    assert capsys.readouterr().out == f"onp {VERSION}\n"
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: onp {'defend' if name == 'verify' else name} [options]") and "exit codes" in shown
    assert shown.count(":\n\n") + shown.count("\n\n") > 3 and "\noutput:\n" in shown


def test_the_version_is_one_and_needs_no_torch():
    assert onp.__version__ == VERSION
    script = "import sys, onp.__main__ as m; code = m.main(['version']); sys.exit(code or 'torch' in sys.modules)"
    with python("-c", script) as process:
        assert process.communicate()[0] == f"onp {VERSION}\n" and process.returncode == 0


def test_the_functions_of_the_package_are_not_its_folders():
    assert onp.detect.__module__ == "onp.api" and "detect" in dir(onp)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = onp.nothing


def test_verify_is_an_option_of_defend(monkeypatch):
    given = []
    monkeypatch.setattr("onp.defend.__main__.COMMAND", replace(DEFEND, work=lambda config: given.append(config) or 0))
    assert main(["verify", "--model", "m.pt"]) == main(["defend", "--verify", "--model", "m.pt"]) == 0
    assert given[0] == given[1] == DefendConfig(model="m.pt", verify=True)


def test_a_missing_part_is_no_verdict(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onp.scan.__main__", None)
    assert main(["scan"]) == BUG and "please report it" in capsys.readouterr().err
    assert main(["version"]) == 0


@pytest.mark.parametrize(
    ("decision", "codes"),
    [
        ("no-backdoor-evidence", (NOTHING, NOTHING, NOTHING)),
        ("inconclusive", (NOTHING, EVIDENCE, NOTHING)),
        ("backdoor-evidence", (EVIDENCE, EVIDENCE, NOTHING)),
        ("repaired", (EVIDENCE, EVIDENCE, NOTHING)),
        ("partly-repaired", (EVIDENCE, EVIDENCE, NOTHING)),
        ("not-repairable", (NOT_REPAIRABLE, NOT_REPAIRABLE, NOTHING)),
    ],
)
def test_the_exit_code_is_that_of_the_decision(decision, codes, monkeypatch, capsys):
    report = SimpleNamespace(decision=decision, to_text=lambda: "")
    monkeypatch.setattr("onp.defend.__main__.defend", lambda config: SimpleNamespace(report=report))
    assert tuple(defend_main(["--fail-on", each]) for each in ("evidence", "inconclusive", "never")) == codes
    assert capsys.readouterr().err == ""


def test_options_come_from_a_file_and_the_command_line_comes_first(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('name = "n"\ntimes = 3\nshare = 1\nkind = "b"\nplaces = ["x", "y"]\nflip = false\njson = true\n')
    assert command().options(["--config", str(file)]) == Options("n", 3, 1.0, "b", ("x", "y"), False, None, True)
    given = ["--times", "4", "--config", str(file), "--places", "z", "--flip", "--no-json"]
    assert command().options(given) == Options("n", 4, 1.0, "b", ("z",), True)
    with pytest.raises(InputError, match="required: --name"):
        command().options([])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tims = 1", r"holds tims, which is no option of this command; perhaps --times is meant\.$"),
        ('config = "x"', "holds config, which is no option"),
        ("[numbers]\nshare = 0.5", "holds numbers, which is no option"),
        ("times = 1.5", r"gives --times as 1\.5; it is a whole number\.$"),
        ("times = true", "gives --times as True; it is a whole number"),
        ('share = "0.5"', r"gives --share as 0\.5; it is a number"),
        ("flip = 1", "gives --flip as 1; it is true or false"),
        ('places = "x"', "gives --places as x; it is a list, each text in quotes"),
        ('places = [["x"]]', "it is a list, each text in quotes"),
        ('kind = "c"', "gives --kind as c; choose from a, b"),
        ("name = 2020-01-01", "gives --name as 2020-01-01; it is text in quotes"),
        ('name = "a"\n"na-me" = "b"', "na-me"),
        ("name = ", "is no TOML"),
        ("name = " + "[" * 100_000, "is no TOML"),
        ("name = '\xff'", "is no TOML"),
        ("#" * MAX_BYTES + "\n", "bytes"),
    ],
    ids=range(16),
)
def test_a_file_that_cannot_be_used_is_one_sentence(text, sentence, tmp_path, capsys):
    file = tmp_path / "options.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=sentence):
        read_config(file, Options)
    assert command().run(["--config", str(file)]) == UNUSABLE
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_gives_an_option_once(tmp_path):
    (tmp_path / "twice.toml").write_text("max-acc-drop = 0.1\nmax_acc_drop = 0.2\n")
    with pytest.raises(InputError, match="gives --max-acc-drop twice"):
        read_config(tmp_path / "twice.toml", DefendConfig)
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        read_config(tmp_path / "none.toml", DefendConfig)


def test_a_run_writes_the_options_that_repeat_it(tmp_path):
    ran = []

    def work(config):
        ran.append(config)
        Path(config.out).mkdir()
        return 1

    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    given = ["--name", 'a "quoted"\nname', "--times", "2", "--share", "0.125", "--places", "x", "y", "--no-flip"]
    assert command(work).run([*given, "--out", first]) == 1
    assert command(work).run(["--config", f"{first}/config.toml", "--out", second]) == 1
    assert ran[1] == replace(ran[0], out=second)
    assert (tmp_path / "first" / "config.toml").read_text() == (tmp_path / "second" / "config.toml").read_text()


@pytest.mark.parametrize("config", [DefendConfig(model="m", expect_acc=0.9, seed=3), CompareConfig(seeds=(1, 2))])
def test_options_survive_their_file(config, tmp_path):
    (tmp_path / "config.toml").write_text(write_config(config, "any"))
    assert type(config)(**read_config(tmp_path / "config.toml", type(config))) == config


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("The file a is damaged; remove it."), UNUSABLE, "The file a is damaged; remove it."),
        (KeyboardInterrupt(), INTERRUPTED, "Interrupted; run the same command again to continue."),
        (ZeroDivisionError("x"), BUG, "This is an error in onp; please report it (ZeroDivisionError: x)."),
        (SystemExit(0), BUG, "This is an error in onp; please report it (SystemExit: 0)."),  # of a user's network
    ],
)
def test_an_error_is_a_sentence_or_json(error, code, message, capsys):
    def work(config):
        raise error

    assert command(work).run(["--name", "n"]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.endswith(message + "\n")
    assert ("Traceback" in shown.err) == (code == BUG)
    assert command(work).run(["--name", "n", "--json"]) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"error": {"message": message, "exit_code": code}}
    assert json.loads(shown.err.splitlines()[-1]) == {"event": "error", "message": message, "exit_code": code}


@pytest.mark.parametrize("wrong", [["--nope"], ["--model"], ["--seed", "x"], ["--model", "none.pt"], ["--config", "none.toml"]])
def test_json_stays_json_where_an_option_is_wrong(wrong, capsys):
    assert main(["defend", "--json", *wrong]) == UNUSABLE
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["exit_code"] == UNUSABLE
    assert all(json.loads(line)["event"] for line in shown.err.splitlines())


def test_names_are_not_abbreviated(capsys):
    assert defend_main(["--pre", "fast"]) == UNUSABLE and "--pre" in capsys.readouterr().err


def test_a_list_is_printed_as_it_is(capsys):
    assert command().run(["--list"]) == 0 and capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize("each", [DEFEND, SCAN, ATTACK, COMPARE], ids=lambda each: each.name)
def test_help_shows_one_form_of_a_flag(each):
    flags = [action for action in each.parser()._actions if action.nargs == 0 and action.dest != "help"]
    assert flags and all(len(action.option_strings) == 1 for action in flags)


def test_names_from_files_move_no_cursor_and_turn_no_text(capsys):
    hostile = "a\x1b]0;title\x07\nb\u202ec\u200fd\x9b2Jé日"
    shown = r"a\x1b]0;title\x07\nb\u202ec\u200fd\x9b2Jé日"
    assert str(InputError(f"The tensor {hostile} is damaged.")) == f"The tensor {shown} is damaged."
    onp.progress.say(hostile)
    assert capsys.readouterr().err == shown + "\n"


CLOSED = """
import sys
from dataclasses import dataclass
from onp.command import Command
from onp.options import option

@dataclass(frozen=True)
class Options:
    err: bool = option(False, "where to write")

def work(config):
    for number in range(100_000):
        print(number, file=sys.stderr if config.err else sys.stdout)
    return 3

sys.exit(Command("try", Options, work, description="Writes.").run())
"""


@pytest.mark.parametrize("where", [[], ["--err"]])
def test_a_reader_that_goes_away_changes_nothing(where):
    with python("-c", CLOSED, *where, stderr=subprocess.STDOUT if where else subprocess.PIPE) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        rest = "" if where else process.stderr.read()
    assert (process.returncode, rest) == (3, "")
