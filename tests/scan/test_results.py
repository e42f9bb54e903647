"""Rows, tables, the page and the exit code of a scan, made of rows that nobody measured."""

import csv
import io
import json
from collections import Counter
from dataclasses import replace

import pytest

from onp.errors import InputError
from onp.scan.config import ScanConfig
from onp.scan.folder import ScanFolder
from onp.scan.index_page import index_page
from onp.scan.result import ScanResult
from onp.scan.row import Row, in_order
from onp.scan.tables import comma_separated, markdown, text_table

CLEAN = Row(
    *("clean.pt", "1" * 64, "a" * 64, 100),
    *("no-backdoor-evidence", "No evidence.", "Because.", None, 0.04, 0, "Bag", 0.9, "vit"),
)
BAD = replace(
    CLEAN,
    name="=b|<script>.pt",
    identity="2" * 64,
    decision="backdoor-evidence",
    probability=0.985,
    report="models/b-1/report.html",
)
CLOSE = replace(CLEAN, name="close.pt", identity="3" * 64, decision="inconclusive", probability=0.4, arch_from="weights")
UNSAFE = Row("pickled.pt", "4" * 64, kind="unsafe", error="pickled.pt holds pickled Python objects.")
BROKEN = Row("a-broken.pt", "5" * 64, kind="unusable", error="a-broken.pt is damaged\x1b[2J.")
ROWS = (BAD, CLOSE, CLEAN, UNSAFE, BROKEN)


def test_the_most_probable_backdoor_comes_first_and_failures_last():
    assert in_order([BROKEN, UNSAFE, CLEAN, CLOSE, BAD]) == list(ROWS)


def test_a_row_is_a_line_of_json():
    for row in ROWS:
        line = row.to_json()
        assert "\n" not in line and "null" not in line
        assert Row.parse(json.loads(line)) == row


@pytest.mark.parametrize(
    "changed",
    [
        *({"name": 3}, {"probability": "7"}, {"decision": "guilty"}, {"decision": None}),
        *({"kind": "unsafe"}, {"sarif": 1}, {"more": 1}),
    ],
)
def test_a_row_of_another_shape_is_damaged(tmp_path, changed):
    (tmp_path / "results.jsonl").write_text(CLEAN.to_json() + "\n" + json.dumps(json.loads(BAD.to_json()) | changed) + "\n")
    with pytest.raises(InputError, match="is damaged; delete it"):
        ScanFolder(str(tmp_path), resume=True)


def test_a_folder_keeps_rows_as_they_come_and_drops_a_cut_line(tmp_path):
    folder = ScanFolder(str(tmp_path / "out"), resume=True)
    assert not (tmp_path / "out").exists(), "nothing is written before the scan begins"
    folder.begin()
    folder.append(CLEAN)
    folder.append(UNSAFE)
    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"name": "cut')
    again = ScanFolder(str(tmp_path / "out"), resume=True)
    assert again.done == {CLEAN.identity: CLEAN}, "what failed is tried again"
    again.begin()
    assert (tmp_path / "out" / "results.jsonl").read_text() == CLEAN.to_json() + "\n"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        ScanFolder(str(tmp_path), resume=False)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(InputError, match="holds a scan; continue it with --resume"):
        ScanFolder(str(tmp_path), resume=False)
    with pytest.raises(InputError, match="--resume needs --out"):
        ScanFolder(None, resume=True)


def test_reports_have_folders_of_plain_names(tmp_path):
    folder = ScanFolder(str(tmp_path / "out"), resume=False)
    path = folder.report_of("../ä/x\n" + "y" * 300, "0123456789abcdef")
    assert path.startswith(str(tmp_path / "out" / "models") + "/") and path.endswith("y-0123456789ab")
    assert len(path.rpartition("/")[2]) < 100 and path.isascii()


def test_tables_say_the_same_and_names_cannot_pass_for_anything_else():
    result = ScanResult(ROWS, Counter({".onnx files": 2}))
    assert result.summary() == (
        "5 models: 1 backdoor-evidence, 1 inconclusive, 1 no-backdoor-evidence, 1 unsafe, 1 unusable. Left out: 2 .onnx files."
    )
    text = text_table(ROWS)
    assert "vit (from the weights)" in text and "\x1b" not in text and "a-broken.pt is damaged\\x1b" in text
    table = markdown(ROWS, result.summary())
    assert r"| [=b\|\<script\>.pt](models/b-1/report.html) | backdoor-evidence | 98.5 % | Bag | 90.0 % |" in table
    assert "- pickled.pt: unsafe. pickled.pt holds pickled Python objects." in table
    lines = list(csv.DictReader(io.StringIO(comma_separated(ROWS))))
    assert [line["name"] for line in lines] == ["'=b|<script>.pt", "close.pt", "clean.pt", "pickled.pt", "a-broken.pt"]
    assert lines[0]["probability"] == "0.985" and lines[3]["status"] == "unsafe" and lines[3]["probability"] == ""


def test_the_page_links_reports_and_filters_without_scripts(tmp_path):
    page = index_page(ScanResult(ROWS, Counter()), ScanConfig(models=("zoo",), data="/home/me/clean", out="scan"))
    assert '<a href="models/b-1/report.html">=b|&lt;script&gt;.pt</a>' in page
    assert "<script" not in page and "http" not in page and "/home/me" not in page
    for status in ("backdoor-evidence", "inconclusive", "no-backdoor-evidence", "unsafe", "unusable"):
        assert f'id="show-{status}"' in page and f'<tr class="{status}">' in page
    assert page.index("=b|") < page.index("close.pt") < page.index("clean.pt") < page.index('"name">pickled.pt')
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        ([CLEAN], {"evidence": 0, "inconclusive": 0, "never": 0}),
        ([CLEAN, CLOSE], {"evidence": 0, "inconclusive": 1, "never": 0}),
        ([CLEAN, BAD, BROKEN], {"evidence": 1, "inconclusive": 1, "never": 0}),
        ([CLEAN, BROKEN], {"evidence": 0, "inconclusive": 1, "never": 0}),
        ([CLEAN, UNSAFE], {"evidence": 1, "inconclusive": 1, "never": 0}),
        ([UNSAFE], {"evidence": 1, "inconclusive": 1, "never": 0}),
        ([BROKEN], {"evidence": 2, "inconclusive": 2, "never": 2}),
    ],
)
def test_the_exit_code_is_that_of_the_worst_model(rows, codes):
    assert {fail_on: ScanResult(tuple(rows)).exit_code(fail_on) for fail_on in codes} == codes
