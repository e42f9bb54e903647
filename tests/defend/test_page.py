"""The page: self-contained, escaped, legible, and true to the run; rendered by a real browser where there is one."""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageStat

from onp.defend.decision import DECISIONS
from onp.defend.report.advice import NEXT_STEPS
from onp.defend.report.page import options, render
from onp.defend.report.sections import FileDigest, Provenance, PrunableLayer, ReferenceSection, Verification
from onp.engine.metrics import Share

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
    page = render(replace(outcome.report, warning="Costs more than allowed.", detection=detection), outcome.diagnostics)
    assert "Costs more than allowed." in page
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert all(step in text for step in NEXT_STEPS["repaired"]) and "<code>--trigger</code>" in page
    nothing = replace(outcome.diagnostics, path=(), pictures=())
    report = replace(
        outcome.report,
        decision="no-backdoor-evidence",
        headline="Nothing was found.",
        target_classes=(),
        target_name=None,
        pruning=None,
        pruned={},
        task="scan",
    )
    page = render(report, nothing)
    assert "Nothing was found." in page and "onp scan" in page and "onp.apply" not in page
    assert not re.search("Before and after|How to undo|Units pruned|0 of|→", page), "nothing happened, nothing is compared"


def test_the_probability_and_what_it_rests_on_are_shown(outcome, detection):
    page = render(replace(outcome.report, detection=detection), outcome.diagnostics)
    first = html.unescape(re.search(r'<dl class="kpis">(.*?)</dl>', page, re.DOTALL)[1])
    assert "Probability of a backdoor" in first and "98.7 %" in first and "evidence from 80 %, none below 20 %" in first
    section = re.search(r'<section aria-labelledby="detection">(.*?)</section>', page, re.DOTALL)[1]
    bars = re.findall(r'class="row"><span>([^<]+)</span>.*?class="number">([^<]+)</span>', section, re.DOTALL)
    assert bars[0] == ("upper left", "97 %") and len(bars) == 4 + 3, "four classes, and the detectors of the target"
    assert bars[4:] == [("patch", "+4.5"), ("warp", "+1.2"), ("latent", "-0.4")], "the strongest first"
    assert "<td>\u2013</td>" in section, "class 3 was not measured"
    known = render(replace(outcome.report, detection=None), outcome.diagnostics)
    assert "Probability of a backdoor" not in known


def test_every_decision_has_its_colour(outcome):
    seen = {}
    for decision in DECISIONS:
        page = render(replace(outcome.report, decision=decision), outcome.diagnostics)
        assert f'<span class="verdict">{decision}</span>' in page
        seen[decision] = re.search(r"--verdict: var\(--(\w+)\)", page)[1]
        assert f"--{seen[decision]}: #" in page
    assert len(set(seen.values())) == len(DECISIONS) - 1 and seen["backdoor-evidence"] == seen["not-repairable"]


def with_surrogates(report, asr, clean):
    shares = {name: Share(hits, 100) for name, hits in asr.items()}
    before, after = (replace(figures, asr_surrogate=shares) for figures in (report.before, report.after))
    return replace(report, before=before, after=after, clean_reference=ReferenceSection(24, "2026-11-29", clean))


def test_the_strongest_surrogate_stands_beside_a_clean_network(outcome):
    asr, clean = {"pgd": 40, "patch": 9, "warp": 3}, {"pgd": 0.5, "patch": 0.05, "warp": None}
    page = render(with_surrogates(outcome.report, asr, clean), outcome.diagnostics)
    first = html.unescape(re.search(r'<dl class="kpis">(.*?)</dl>', page, re.DOTALL)[1]).replace("\u202f", " ")
    assert [*re.findall(r"<dt>(.*?)</dt>", first)][:2] == ["Accuracy (ACC)", "Strongest surrogate ASR: patch"]
    assert "a clean network: up to 5.0 %" in first, "the one that is above its mark, not the highest"
    assert page.count("a clean network: up to 50.0") == 1 and page.count("a clean network: not measured") == 1
    assert "of 24 clean networks one in 20 exceeds it" in page
    none_above = render(with_surrogates(outcome.report, asr, {"pgd": 0.5, "patch": 0.1, "warp": 0.1}), outcome.diagnostics)
    assert "Strongest surrogate ASR: pgd" in none_above


def test_the_head_names_the_files_and_when(outcome):
    files = [
        FileDigest(role, f"{role}.bin", character * 64, 7) for role, character in (("model", "a"), ("repaired model", "b"))
    ]
    provenance = Provenance(
        "2026-11-29T10:49:07+00:00", "0.1.0", {"learned.json": "version 3"}, tuple(files[:1]), tuple(files[1:])
    )
    page = render(replace(outcome.report, provenance=provenance), outcome.diagnostics)
    head, rest = page.split("</header>")
    assert "2026-11-29 10:49 UTC" in head and "a" * 64 in head and "b" * 64 in head
    assert "learned.json" in rest and "written: repaired model" in rest


def test_units_are_drawn_layer_by_layer(outcome, page):
    section = page[page.index('id="where"') : page.index('id="classes"')]
    for name, units in outcome.report.pruned.items():
        row = section[section.index(f"<code>{name}</code>") :].split("</svg>")[0]
        assert [int(x) for x in re.findall(r'<rect x="(\d+)" y="0" width="\d+" height="16" fill="var\(--bad\)"', row)] == units
    many = replace(outcome.report.model, layers=tuple(PrunableLayer(f"layer{k}", 600) for k in range(40)))
    page = render(replace(outcome.report, model=many, pruned={"layer7": [0, 599]}), outcome.diagnostics)
    assert "39 other layers have no pruned unit" in page and page.count("<code>layer") == 2


def test_commands_and_options_are_shown_as_code():
    text = "Run onp verify (python -m onp.defend --verify), with other seeds (--seed 1) or --max-acc-drop 0.1: well-known <x>."
    assert options(text) == (
        "Run <code>onp verify</code> (<code>python -m onp.defend --verify</code>), with other seeds (<code>--seed</code> 1) or "
        "<code>--max-acc-drop</code> 0.1: well-known &lt;x&gt;."
    )


def test_the_lines_that_log_a_result_run(outcome, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text(outcome.report.to_json())
    logged = {}
    log = SimpleNamespace(log=logged.update)
    mlflow = SimpleNamespace(log_metrics=logged.update, log_artifact=lambda path: logged.update(artifact=path))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: log, Html=lambda path: path))
    snippets = [code for code in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL) if "report.json" in code]
    assert len(snippets) == 2 and all(code.count("\n") == 2 for code in snippets)
    for code in snippets:
        exec(html.unescape(code), {})
    assert {"acc": outcome.report.after.acc.value, "decision": "repaired", "artifact": "report.html"}.items() <= logged.items()


def test_a_verification_shows_mask_and_weights(outcome):
    name = outcome.report.model.layers[0].name
    found = Verification(pruned={name: [1, 2, 3]}, mask={name: [1, 2, 5]}, not_zero={name: [5]}, not_named={name: [3]})
    report = replace(outcome.report, task="verify", pruned={}, verification=found)
    section = render(report, outcome.diagnostics).split('id="repair"')[1].split("</section>")[0]
    colours = re.findall(r'<rect x="(\d)" y="0" width="1" height="16" fill="var\(--(after|bad|before)\)"', section)
    assert colours == [("1", "after"), ("2", "after"), ("3", "before"), ("5", "bad")]
    without = render(replace(report, verification=replace(found, mask=None)), outcome.diagnostics)
    assert "There is no <code>mask.json</code>" in without


def test_the_diagnostics_are_what_the_networks_do(outcome, small, backdoored):
    diagnostics, mask, clean = outcome.diagnostics, outcome.mask, small.case(backdoored.victim).clean.holdout
    before, after = (network.logits(clean.pixels()).argmax(1) for network in (backdoored.victim, outcome.victim))
    assert sum(share.hits for share, _ in diagnostics.per_class) == int((before == clean.labels).sum())
    assert sum(share.hits for _, share in diagnostics.per_class) == int((after == clean.labels).sum())
    assert diagnostics.changes.count == int((before != after).sum()) >= len(diagnostics.changes.images)
    assert [sum(confidence.counts) for confidence in diagnostics.confidence] == [len(clean)] * 2
    pruned, path = int((~mask.keep).sum()), diagnostics.path
    assert path[0].pruned == 0 and path[-1].pruned == pruned
    assert path[-1].acc == pytest.approx(outcome.report.after.acc.value)
    (asr,) = outcome.report.after.asr_surrogate.values()
    assert path[-1].asr == pytest.approx(asr.value)
    (picture,) = diagnostics.pictures
    assert torch.equal(picture.triggered, (small.stamp(picture.clean[None] / 255)[0] * 255).round().byte())
    assert picture.before == 0 != picture.label


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
        for text in ("text", "soft", "before", "after", "good", "bad", "part", "unsure"):
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
