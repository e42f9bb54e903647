"""The model card: figures of the report, names that Markdown leaves alone."""

from dataclasses import replace

from onp.defend.report.model_card import model_card


def test_it_says_what_was_done(outcome):
    report = replace(outcome.report, reason="A trigger leads to class <b>a_b|c*; 6 units carried it.", warning="Too dear.")
    card = model_card(report)
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "pipeline_tag: image-classification" in head
    assert r"class &lt;b>a\_b\|c\*; 6 units" in body and "**Warning:** Too dear." in body
    for layer, units in report.pruned.items():
        assert f"- `{layer}`: {', '.join(map(str, units))}" in body
    before, after = (f"{100 * each.acc.value:.1f} %" for each in (report.before, report.after))
    (row,) = [line for line in body.splitlines() if line.startswith("| Accuracy on clean")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith(before) and cells[2].startswith(after) and cells[3] == str(report.after.acc.n)
