"""Progress where there is no terminal."""

from onp import progress


def test_lines_say_what_is_left_and_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.stage("counting", 4) as bar:
        bar.advance(3, "note")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "counting ..." and said[1].startswith("counting: 3/4, about ") and said[1].endswith("note")
    with progress.stage("counting", 4, quiet=True) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""
