"""The page: self-contained, escaped, legible, and true to the run; rendered by a real browser where there is one."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageStat

from onp.defend.evaluation import Evaluation
from onp.defend.report.advice import NEXT_STEPS
from onp.defend.report.audit import AuditSet, audit_repair
from onp.defend.report.diagnostics import GraphDrawing, diagnose
from onp.defend.report.page import render
from onp.search.neuron_graph import RELATIONS, build_graph

CHROMIUM = shutil.which("chromium")
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def page(outcome):
    return render(outcome.report, outcome.diagnostics)


def test_it_holds_everything_it_shows(page):
    assert len(page.encode()) < 3e6
    assert "<script" not in page and "http" not in page and "@import" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_names_are_escaped(page):
    assert "lower &lt;right&gt;" in page and "<right>" not in page


def test_every_picture_has_words_for_it(page):
    assert all(re.search(r'alt="[^"]{5,}"', tag) for tag in re.findall(r"<img [^>]*>", page))
    for tag in re.findall(r"<svg [^>]*>", page):
        assert 'aria-hidden="true"' in tag or re.search(r'role="img" aria-label="[^"]{20,}"', tag), tag


def test_terms_of_the_figures_are_explained(page):
    terms = re.findall(r"<dt>([^<]+)</dt><dd>[^<]{30,}", page)
    assert {"ACC", "ASR", "RA", "DER", "surrogate"} <= set(terms)


def test_the_warning_and_other_decisions_are_shown(outcome, detection):
    scored = replace(detection, score=(5.0, 0.1, 0.2, -3.0), anomaly_index={"patch": (5.0, 0.1, 0.2, -3.0)})
    page = render(replace(outcome.report, warning="Costs more than allowed.", detection=scored), outcome.diagnostics)
    assert "Costs more than allowed." in page and "has a detection score of 5.0" in page
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert all(step in text for step in NEXT_STEPS["repaired"]) and "<code>--trigger</code>" in page
    nothing = replace(outcome.diagnostics, path=(), pictures=(), graph=GraphDrawing((), ()))
    report = replace(
        outcome.report,
        decision="no-backdoor-evidence",
        headline="Nothing was found.",
        target_classes=(),
        target_name=None,
        pruned={},
    )
    page = render(report, nothing)
    assert "Nothing was found." in page and "Nothing to undo" in page and "onp.apply" not in page
    assert "Before and after" not in page


def test_the_diagnostics_are_what_the_networks_do(outcome, small, backdoored):
    diagnostics, mask, clean = outcome.diagnostics, outcome.mask, small.case(backdoored.victim).clean.holdout
    before, after = (network.logits(clean.pixels()).argmax(1) for network in (backdoored.victim, outcome.victim))
    assert sum(share.hits for share, _ in diagnostics.per_class) == int((before == clean.labels).sum())
    assert sum(share.hits for _, share in diagnostics.per_class) == int((after == clean.labels).sum())
    assert diagnostics.changes.count == int((before != after).sum()) >= len(diagnostics.changes.images)
    assert [sum(confidence.counts) for confidence in diagnostics.confidence] == [len(clean)] * 2
    pruned, path = int((~mask.keep).sum()), diagnostics.path
    assert path[0].pruned == 0 and path[-1].pruned == pruned == sum(node.pruned for node in diagnostics.graph.nodes)
    assert path[-1].acc == pytest.approx(outcome.report.after.acc.value)
    (asr,) = outcome.report.after.asr_surrogate.values()
    assert path[-1].asr == pytest.approx(asr.value)
    (picture,) = diagnostics.pictures
    assert torch.equal(picture.triggered, (small.stamp(picture.clean[None] / 255)[0] * 255).round().byte())
    assert picture.before == 0 != picture.label


@pytest.mark.parametrize(("relations", "edges"), [(RELATIONS, True), ((), False)])
def test_the_graph_is_the_one_that_the_policy_saw(relations, edges, outcome, small, backdoored):
    victim, mask = backdoored.victim, outcome.mask
    search = SimpleNamespace(mask=mask, graph=build_graph(victim, relations))
    data = AuditSet(small.case(victim).clean.holdout, (), Evaluation())
    drawing = diagnose(victim, outcome.victim, mask, audit_repair(victim, outcome.victim, data), [search]).graph
    assert bool(drawing.edges) is edges
    assert sum(node.pruned for node in drawing.nodes) == int((~mask.keep).sum())
    assert edges or all(node.pruned for node in drawing.nodes)


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa(page):
    schemes = re.findall(r":root \{(.*?)\}", page, re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = {name: "#" + "".join(c * 2 for c in value) if len(value) == 3 else f"#{value}"
                   for name, value in re.findall(r"--(\w+): #(\w+)", scheme)}  # fmt: skip
        for text in ("text", "soft", "before", "after", "good", "bad"):
            for ground in ("page", "card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def chromium(tmp_path, *arguments):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
               # Nothing of the browser's own is fetched.
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@browser
def test_it_fits_a_phone_and_every_image_opens(page, tmp_path):
    probe = """<script>function tell() {
      const all = document.querySelector("iframe").contentDocument, images = [...all.images];
      document.body.textContent = JSON.stringify({width: all.documentElement.scrollWidth, images: images.length,
        opened: images.filter(image => image.naturalWidth > 0).length, sections: all.querySelectorAll("section").length});
    }</script>"""
    frame = f'<iframe style="width: 360px; height: 700px; border: 0" onload="tell()" srcdoc="{html.escape(page)}"></iframe>'
    (tmp_path / "probe.html").write_text(f"<!DOCTYPE html><body>{probe}{frame}")
    seen = json.loads(re.search(r"\{.*\}", chromium(tmp_path, "--dump-dom", f"file://{tmp_path}/probe.html")).group(0))
    assert seen["width"] <= 360
    assert seen["images"] == seen["opened"] == page.count("<img ") > 0
    assert seen["sections"] == page.count("<section")


@browser
def test_it_follows_the_scheme_of_the_reader(page, tmp_path):
    (tmp_path / "page.html").write_text(page)
    brightness = []
    for scheme in ("0", "1"):  # dark, light
        picture = tmp_path / f"{scheme}.png"
        options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,1000", f"--screenshot={picture}")
        chromium(tmp_path, *options, f"file://{tmp_path}/page.html")
        brightness.append(ImageStat.Stat(Image.open(picture).convert("L")).mean[0])
    assert brightness[0] < 70 and brightness[1] > 200


@browser
def test_a_print_fills_its_pages(page, tmp_path):
    (tmp_path / "page.html").write_text(page)
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{tmp_path}/page.html")
    pages = re.findall(rb"/Type /Page\b", (tmp_path / "page.pdf").read_bytes())
    assert 0 < len(pages) < page.count("<section"), "sections run on, they do not each start a page"
