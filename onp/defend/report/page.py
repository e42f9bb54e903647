"""The page people open: one HTML file that holds everything it shows, drawn from the report and its diagnostics."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from onp.defend.decision import Decision
from onp.defend.report.diagnostics import Diagnostics
from onp.defend.report.environment import hardware, versions
from onp.defend.report.probabilities import in_words, strongest
from onp.defend.report.report import ACC, ASR_CLEAN, RA_TRUE, Report, shares
from onp.detect.known_trigger import KNOWN
from onp.engine.metrics import Share

# Pixels of the longer side, so that a page with many images stays small: of triggers, and of images whose class changed.
PICTURE, THUMBNAIL = 224, 96
CLASSES_SHOWN = 10  # most bars of probabilities; the table below them holds all classes
LAYERS_SHOWN = 24  # of networks with more layers only those that lost units are drawn

COLOURS: dict[Decision, str] = {
    "no-backdoor-evidence": "good",
    "inconclusive": "unsure",
    "backdoor-evidence": "bad",
    "repaired": "after",
    "partly-repaired": "part",
    "not-repairable": "bad",
}


def render(report: Report, diagnostics: Diagnostics) -> str:
    """The whole page; names and texts of the user are escaped, images are embedded, nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("onp.defend.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f}\u202f%"
    environment.filters |= {"png": png, "thumbnail": partial(png, side=THUMBNAIL)}
    environment.filters |= {"options": options, "date": date, "probability": in_words}
    environment.globals |= {"difference": difference, "clean_words": clean_words}
    names = diagnostics.class_names
    # The network may know classes of which no image was given.
    environment.globals["class_name"] = lambda k: names[k] if 0 <= k < len(names) else f"class {k}" if k >= 0 else "unknown"
    settings = dataclasses.asdict(report.config)
    rows, classes = _rows(report), _classes(report)
    return environment.get_template("report.html").render(
        report=report,
        diagnostics=diagnostics,
        colour="bad" if report.missed else COLOURS[report.decision],
        changed=report.changed,
        rows=rows,
        strongest=_strongest_surrogate(rows),
        classes=classes,
        classes_shown=CLASSES_SHOWN,
        evidence=_evidence(report),
        layers=_layers(report, {"bad": report.pruned}),
        checked=_checked(report),
        layers_shown=LAYERS_SHOWN,
        settings={name: value for name, value in settings.items() if value is not None},
        versions=versions() | {name: value for name, value in hardware().items() if value is not None},
    )


def options(text: str) -> Markup:
    """The text, escaped, with the commands and command-line options in it as code."""
    command = r"\b(?:python -m onp\.[a-z]+|onp (?:scan|defend|verify))(?: --[a-z-]+)*|(?<![\w-])--[a-z][a-z-]*"
    return Markup(re.sub(command, r"<code>\g<0></code>", str(escape(text))))


def png(image: Tensor, side: int = PICTURE) -> str:
    """A data URI of an image, uint8 `[C, H, W]` of 1 or 3 channels, its longer side at most `side` pixels."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def date(created: str) -> str:
    """A date of `Provenance`, without the letters of ISO 8601."""
    return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M} UTC"


def clean_words(clean: float | None) -> str:
    """What a surrogate reaches on a clean network, in words."""
    return "a clean network: not measured" if clean is None else f"a clean network: up to {100 * clean:.1f}\u202f%"


def difference(clean: Tensor, triggered: Tensor) -> Tensor:
    """What a trigger changed, uint8 as the images: the size of the difference, the largest one white."""
    size = (triggered.int() - clean.int()).abs()
    return (size * 255 // size.max().clamp_min(1)).byte()


@dataclass(frozen=True)
class Row:
    """A figure before and after."""

    name: str
    meaning: str
    high_is_good: bool
    before: Share
    after: Share
    surrogate: bool  #: whether it is of triggers that were inverted
    clean: float | None  #: what a surrogate reaches on a clean network, a share; None where it was not measured

    @property
    def label(self) -> str:
        """Of the box with the figure that counts."""
        return f"Strongest {self.name.replace(', ', ': ')}" if self.surrogate else self.name


def _rows(report: Report) -> list[Row]:
    meaning = {
        ACC: "clean images given their own class",
        ASR_CLEAN: "clean images given the target class",
        RA_TRUE: "the same images given their own class",
    }
    surrogates = {f"surrogate ASR, {name}": name for name in report.after.asr_surrogate if name != KNOWN}
    return [
        Row(
            name=name,
            meaning=meaning.get(name, "triggered images given the target class"),
            high_is_good=name in (ACC, RA_TRUE),
            before=before,
            after=after,
            surrogate=name in surrogates,
            clean=report.clean_reference.shares.get(surrogates[name]) if name in surrogates else None,
        )
        for name, before, after in shares(report.before, report.after)
    ]


def _strongest_surrogate(rows: list[Row]) -> Row | None:
    """The surrogate that works best after the repair; those that work better than on clean networks come first."""
    surrogates = [row for row in rows if row.surrogate]
    return max(
        surrogates, key=lambda row: (row.clean is not None and row.after.value > row.clean, row.after.value), default=None
    )


@dataclass(frozen=True)
class Strip:
    """A layer, and the colour of each unit that stands out."""

    name: str
    units: int
    marked: dict[int, str]


def _layers(report: Report, colours: dict[str, dict[str, list[int]]]) -> list[Strip]:
    """The prunable layers, from input to logits.

    Args:
        report: whose network it is.
        colours: colour -> units by layer.
    """
    strips = []
    for layer in report.model.layers:
        marked = {unit: colour for colour, units in colours.items() for unit in units.get(layer.name, [])}
        strips.append(Strip(layer.name, layer.units, dict(sorted(marked.items()))))
    return strips


def _checked(report: Report) -> list[Strip]:
    """The mask against the weights; empty where that was not asked."""
    checked = report.verification
    if checked is None:
        return []
    return _layers(report, {"after": checked.pruned, "before": checked.not_named, "bad": checked.not_zero})


@dataclass(frozen=True)
class TargetClass:
    """The probability that class k is a target, and the anomaly index that each detector gives it."""

    k: int
    probability: float
    anomaly_index: dict[str, float]


def _classes(report: Report) -> list[TargetClass]:
    """The most probable one first; empty where the trigger was known."""
    detection = report.detection
    if detection is None:
        return []
    indices = detection.anomaly_index
    return [
        TargetClass(k, detection.per_class[k], {name: values[k] for name, values in indices.items()}) for k in detection.ranking
    ]


def _evidence(report: Report) -> dict[int, list[tuple[str, float]]]:
    """What the detectors add to the log odds of the target classes, or else of the most probable one; strongest first."""
    detection = report.detection
    if detection is None:
        return {}
    shown = report.target_classes or detection.ranking[:1]
    return {k: strongest(detection.evidence_of(k), len(detection.evidence)) for k in shown}
