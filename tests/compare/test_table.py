"""Means, spreads and times of a table."""

from helpers.small_tables import outcome_row

from onp.compare.table import as_csv, as_markdown, timed_alike


def test_means_and_spread():
    text = as_markdown([outcome_row(0, 0.1), outcome_row(1, 0.3)], {"passes": 1})
    assert "| clp | 2 | 2.0 ± 0.0 | 20.0 ± 14.1 | 30.0 | 50.0 ± 0.0 | 0.900 ± 0.000 | 0.0 ± 0.0 | - | - | 2 ± 0 |" in text
    assert "Seconds are of" not in text


def test_seconds_of_different_machines_are_not_averaged():
    rows = [outcome_row(0, 0.1), outcome_row(1, 0.3, 900.0, "elsewhere"), outcome_row(2, 0.5, 4.0)]
    text = as_markdown(timed_alike(rows), {"passes": 1})
    assert "| clp | 3 | 2.0 ± 0.0 | 30.0 ± 20.0 |" in text and "| - | 3 ± 1 |" in text
    assert "Measured on: here.\nMeasured on: elsewhere.\nSeconds are of the machine that ran most cells." in text
    lines = as_csv(rows).splitlines()
    assert [line.rsplit(",", 2)[1:] for line in lines[1:]] == [["2.0", "here"], ["900.0", "elsewhere"], ["4.0", "here"]]
    failed = [{"victim": "v", "error": "no memory"}] * 5
    assert ["seconds" in row for row in timed_alike(rows + failed)] == [True, False, True] + [False] * 5


def test_networks_without_a_backdoor_have_a_section_of_their_own():
    text = as_markdown([outcome_row(0, 0.1) | {"attack": "none"}], {})
    assert "## False repairs" in text and "## All attacks" not in text


def test_the_table_comes_first_and_what_its_columns_mean_last():
    lines = as_markdown([outcome_row(0, 0.1)], {"passes": 1}, ["acc_asr.png"]).splitlines()
    assert lines[2].startswith("1 victim, 1 defence, 1 seed: mean") and lines[4] == "## All attacks"
    assert lines.index("## How it was measured") > lines.index("## v") > lines.index("![acc_asr](acc_asr.png)")
    assert "An oracle ASR above the defence's own says" in " ".join(lines)
