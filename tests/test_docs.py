"""The documentation: it builds without a warning, its notebook runs, its words are the field's."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Words with a private meaning in earlier versions; the field's own say the same. A word counts inside identifiers, too.
PRIVATE_WORDS = (
    "witness(es)?", "carriers?", "loud(er|est|ness)?", "heard", "hears?", "told", "said", "hush(ed)?", "suspicions?",
    "suspects?", "suspected", "remember(s|ed|ing)?", "recall(s|ed|ing)?", "drift(s|ed|ing)?", "convict(s|ed)?", "accuse[sd]?",
    "hinted", "judges", "peek(s|ed)?", "closer look", "looking closer", "close call", "cautions?",
)  # fmt: skip
REPAIRED = "Decision: (partly-)?repaired"
PRIVATE = re.compile(rf"(?<![A-Za-z])({'|'.join(PRIVATE_WORDS)})(?![A-Za-z])", re.IGNORECASE)


def test_the_site_builds(tmp_path):
    for needed in ("mkdocs", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
        pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "onp.api.mitigate" in (tmp_path / "api" / "index.html").read_text()
    formulas = (tmp_path / "how-it-works" / "index.html").read_text()
    assert formulas.count("<math") > 20 and "$`" not in formulas
    assert "0.8\u00a0±\u00a00.9" in (tmp_path / "results" / "index.html").read_text()
    assert re.search(REPAIRED, (tmp_path / "notebook" / "index.html").read_text()), "its outputs are committed"


def test_the_notebook_runs():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    after = float(printed.split("after")[-1].split("ASR")[1].split("%")[0])
    assert re.search(REPAIRED, printed) and after < 10, printed


def test_the_page_of_options_is_that_of_the_commands():
    page = runpy.run_path(str(ROOT / "docs" / "command_line.py"))["page"]
    assert (ROOT / "docs" / "command-line.md").read_text() == page(), "run python docs/command_line.py"


def test_the_words_are_those_of_the_field():
    texts = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*"), *ROOT.glob("onp/**/*")]
    kinds = (".md", ".py", ".ipynb", ".html", ".json", ".css")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word[0]}"
        for path in texts
        if path.suffix in kinds and path.name not in ("ablations.md", "card.json")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word in PRIVATE.finditer(line)
    ]
    assert not found, "\n".join(found)
