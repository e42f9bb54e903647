"""The model card: figures of the report, and names that neither Markdown nor the front matter reads as more than text."""

from dataclasses import replace

from onp.defend.report.model_card import model_card


def parts(card):
    head, _, body = card.removeprefix("---\n").partition("---\n")
    return head, body


def test_it_says_what_was_done(outcome):
    report = replace(outcome.report, reason="The trigger leads to class <b>a_b|c*; 6 units were pruned.", warning="Too dear.")
    head, body = parts(model_card(report))
    assert "pipeline_tag: image-classification" in head
    assert r"class &lt;b>a\_b\|c\*; 6 units" in body and "**Warning:** Too dear." in body
    for layer, units in report.pruned.items():
        assert f"- `{layer}`: {', '.join(map(str, units))}" in body
    before, after = (f"{100 * figures.acc.value:.1f} %" for figures in (report.before, report.after))
    (row,) = [line for line in body.splitlines() if line.startswith("| ACC")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith(before) and cells[2].startswith(after) and cells[3] == str(report.after.acc.n)


def test_line_breaks_in_names_break_neither_the_front_matter_nor_the_table(outcome):
    hostile = "cat\n---\n# owned | x"
    model = replace(outcome.report.model, path=f"/home/me/{hostile}", arch=hostile)
    before, after = (replace(figures, asr_surrogate={f"patch to {hostile}": figures.acc})
                     for figures in (outcome.report.before, outcome.report.after))  # fmt: skip
    report = replace(outcome.report, reason=f"Leads to {hostile}.", model=model, before=before, after=after)
    head, body = parts(model_card(report))
    assert "owned" in head and "/home" not in head + body
    assert all(line.split(":")[0] in ("pipeline_tag", "tags", "# base_model") for line in head.splitlines())
    assert not any(line.startswith(("---", "# owned")) for line in body.splitlines())
    assert len({line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("|")}) == 1
