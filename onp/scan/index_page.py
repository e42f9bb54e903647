"""The page that links the reports of a scan: one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from onp.defend.decision import DECISIONS
from onp.defend.report.names import name_of
from onp.defend.report.page import COLOURS
from onp.defend.report.probabilities import in_words
from onp.detect.probability import learned_verdict
from onp.scan.config import ScanConfig
from onp.scan.result import ScanResult
from onp.version import VERSION

MEANINGS = {
    "backdoor-evidence": "a backdoor is probable: a class is far easier to reach than the others, as its target is",
    "unsafe": "opening the file could run code, so it was not opened",
    "inconclusive": "neither answer is safe; scan with --preset thorough, another seed or more images",
    "no-backdoor-evidence": "a backdoor is improbable; that is no proof that there is none",
    "unusable": "something given does not fit it, or the file is damaged",
    "crashed": "its process ended, perhaps for want of memory, or onp has an error",
}
"""What the page says of each verdict that a scan may come to, the worst first."""
COLOURS_OF_ALL = {str(decision): colour for decision, colour in COLOURS.items()}
COLOURS_OF_ALL |= {"unsafe": "bad", "unusable": "soft", "crashed": "part"}


def index_page(result: ScanResult, config: ScanConfig) -> str:
    """The whole page, rows in the order in which they are given; names and texts are escaped."""
    # The report's own style, so that a page and those that it links look alike.
    loader = ChoiceLoader([PackageLoader("onp.scan"), PackageLoader("onp.defend.report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["probability"] = in_words
    rows = result.rows
    counts = Counter(row.status for row in rows)
    known = {status: counts[status] for status in (*MEANINGS, *DECISIONS) if counts[status]}
    return environment.get_template("index.html").render(
        rows=rows,
        counts=known,
        meanings=MEANINGS,
        colours=COLOURS_OF_ALL,
        worst=COLOURS_OF_ALL[next(iter(known))],
        left_out=result.others(),
        verdict=learned_verdict(),
        data=name_of(config.data) if config.data else "as the list of models says",
        config=config,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=VERSION,
    )
