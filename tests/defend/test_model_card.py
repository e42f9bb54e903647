"""The model card: figures of the report, and names that neither Markdown nor the front matter reads as more than text."""

from dataclasses import replace

import pytest
from helpers.reports import DATA, ORIGINAL, REPAIRED, figures, made_detection, repaired_report

from onp.defend.report.model_card import model_card
from onp.defend.report.sections import Tuned


def parts(card):
    head, _, body = card.removeprefix("---\n").partition("---\n")
    return head, body


@pytest.fixture
def report():
    """A repair whose files have digests."""
    return repaired_report()


def rows(body, start):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith(start)]


def test_it_says_what_was_done(report):
    report = replace(report, reason="The trigger leads to class <b>a_b|c*; 6 units were pruned.", warning="Too dear.")
    head, body = parts(model_card(report))
    assert "pipeline_tag: image-classification" in head
    assert r"class &lt;b>a\_b\|c\*; 6 units" in body and "**Warning:** Too dear." in body
    for layer, units in report.pruned.items():
        assert f"- `{layer}`: {', '.join(map(str, units))}" in body
    before, after = (f"{100 * figures.acc.value:.1f} %" for figures in (report.before, report.after))
    (cells,) = rows(body, "| ACC")
    assert cells[1].startswith(before) and cells[2].startswith(after) and cells[4] == str(report.after.acc.n)
    assert report.headline in body


def test_surrogates_stand_beside_what_clean_networks_show(report):
    _, body = parts(model_card(report))
    assert [cells[3] for cells in rows(body, "| surrogate ASR")] == ["up to 20.0 %", "not measured"]
    assert "24 networks, version 2026-11-29" in body
    assert len(rows(body, "| RA, true trigger")) == 1 and "RA: robust accuracy" in body
    unmeasured = replace(report.clean_reference, shares={"patch": None, "warp": None})
    _, body = parts(model_card(replace(report, clean_reference=unmeasured)))
    assert "clean network" not in body and len(rows(body, "| ACC")[0]) == 4


def test_a_trained_network_has_its_own_figures(report):
    assert "nothing else differs" in model_card(report)
    trained = Tuned("ft-sam", figures(97, 1, 2, 0), None)
    _, body = parts(model_card(replace(report, tuned=trained)))
    assert "trained on the clean images with ft-sam" in body and "nothing else differs" not in body
    assert rows(body, "| ACC")[0][2].startswith("97.0 %")


def test_it_ties_the_repaired_file_to_the_original(report):
    head, body = parts(model_card(report))
    for each in (ORIGINAL, REPAIRED, DATA):
        assert [each.role, each.name, f"`{each.sha256}`"] in rows(body, f"| {each.role}")
    assert "2026-11-29T10:00:00Z with onp 0.1.0 (clean\\_reference.json 1)" in body
    assert f'# base_model: the repository of the original checkpoint, "net one.pt, SHA-256 {ORIGINAL.sha256}"' in head
    assert "A signature of the original does not cover the repaired file" in body


@pytest.mark.parametrize(
    "arch, library",
    [("timm resnet18", "timm"), ("torchvision:resnet18", "torchvision"), (None, "pytorch"), ("timmy:Net", "pytorch")],
)
def test_it_names_the_library_that_loads_it(report, arch, library):
    head, _ = parts(model_card(replace(report, model=replace(report.model, arch=arch))))
    assert f"library_name: {library}\n" in head and "# license: that of the original\n" in head


def test_line_breaks_in_names_break_neither_the_front_matter_nor_the_table(report):
    hostile = "cat\n---\n# owned | x"
    model = replace(report.model, path=f"/home/me/{hostile}", arch=hostile)
    before, after = (replace(figures, asr_surrogate={f"patch to {hostile}": figures.acc})
                     for figures in (report.before, report.after))  # fmt: skip
    made = replace(report.provenance, inputs=(replace(ORIGINAL, name=hostile),))
    report = replace(
        report,
        reason=f"Leads to {hostile}.",
        model=model,
        before=before,
        after=after,
        provenance=made,
        headline=hostile,
        pruned={hostile + "`": [1]},
        detection=made_detection(class_names=(hostile, "b", "c", "d")),
    )
    head, body = parts(model_card(report))
    assert "owned" in head and "/home" not in head + body
    known = ("library_name", "pipeline_tag", "tags", "# base_model", "# base_model_relation", "# license")
    assert all(line.split(":")[0] in known for line in head.splitlines())
    assert not any(line.startswith(("---", "# owned")) for line in body.splitlines())
    evidence, _, rest = body.partition("## Before and after")
    figures, _, files = rest.partition("## Provenance")
    for table in (evidence, figures, files):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines() if line.startswith("|")}) == 1
