"""The page people open: one HTML file that holds everything it shows, drawn from the report and its diagnostics."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from onp.defend.report.diagnostics import NEIGHBOURS, Diagnostics
from onp.defend.report.environment import hardware, versions
from onp.defend.report.report import ACC, ASR_CLEAN, RA_TRUE, Report, shares
from onp.defend.report.sentences import HEADLINES, NEXT_STEPS
from onp.engine.metrics import Share

# Pixels of the longer side, so that a page with many images stays small: of triggers, and of images whose class changed.
PICTURE, THUMBNAIL = 224, 96
CLASSES_SHOWN = 20  # most bars of detection scores; the table below them holds all classes


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
    environment.filters["options"] = options
    environment.globals["difference"] = difference
    names = diagnostics.class_names
    # The network may know classes of which no image was given.
    environment.globals["class_name"] = lambda k: names[k] if 0 <= k < len(names) else f"class {k}" if k >= 0 else "unknown"
    settings = dataclasses.asdict(report.config)
    return environment.get_template("report.html").render(
        report=report,
        diagnostics=diagnostics,
        headline=HEADLINES[report.decision],
        next_steps=NEXT_STEPS[report.decision],
        rows=_rows(report),
        surrogate=_highest_surrogate(report),
        classes=_classes(report),
        classes_shown=CLASSES_SHOWN,
        neighbours=NEIGHBOURS,
        file_name=PurePath(report.model.path or "").name,
        graph=_graph(diagnostics),
        layers=[
            {"name": layer.name, "units": layer.units, "pruned": report.pruned.get(layer.name, [])}
            for layer in report.model.layers
        ],
        settings={name: value for name, value in settings.items() if value is not None},
        versions=versions() | {name: value for name, value in hardware().items() if value is not None},
    )


def options(text: str) -> Markup:
    """The text, escaped, with the command-line options in it as code."""
    return Markup(re.sub(r"(?<!\S)(--[a-z][a-z-]*)", r"<code>\1</code>", str(escape(text))))


def png(image: Tensor, side: int = PICTURE) -> str:
    """A data URI of an image, uint8 `[C, H, W]` of 1 or 3 channels, its longer side at most `side` pixels."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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


def _rows(report: Report) -> list[Row]:
    meaning = {
        ACC: "clean images given their own class",
        ASR_CLEAN: "clean images given the target class",
        RA_TRUE: "the same images given their own class",
    }
    return [
        Row(name, meaning.get(name, "triggered images given the target class"), name in (ACC, RA_TRUE), before, after)
        for name, before, after in shares(report.before, report.after)
    ]


def _highest_surrogate(report: Report) -> tuple[Share, Share] | None:
    """The family of surrogate triggers that works best after the repair, before and after."""
    if not report.after.asr_surrogate:
        return None
    family = max(report.after.asr_surrogate, key=lambda name: report.after.asr_surrogate[name].value)
    return report.before.asr_surrogate[family], report.after.asr_surrogate[family]


@dataclass(frozen=True)
class ClassScore:
    """The detection score of class k, and the anomaly index that each detector gives it."""

    k: int
    score: float
    anomaly_index: dict[str, float]


def _classes(report: Report) -> list[ClassScore]:
    """Highest score first; empty where the trigger was known."""
    if report.detection is None:
        return []
    indices = report.detection.anomaly_index
    rows = [
        ClassScore(k, score, {name: values[k] for name, values in indices.items()})
        for k, score in enumerate(report.detection.score)
    ]
    return sorted(rows, key=lambda row: -row.score)


def _graph(diagnostics: Diagnostics) -> dict[str, Any] | None:
    """Positions for the drawing of the graph: a column for each layer, units spread over its height."""
    drawing = diagnostics.graph
    if not drawing.nodes:
        return None
    columns: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(drawing.nodes):
        columns[node.layer].append(index)
    height = 40 + 13 * max(len(column) for column in columns.values())
    at = {}
    for position, layer in enumerate(sorted(columns)):
        column = columns[layer]
        for row, index in enumerate(column):
            at[index] = (30 + position * 64, 24 + (height - 36) * (row + 0.5) / len(column))
    nodes = [dataclasses.asdict(node) | {"x": at[i][0], "y": at[i][1]} for i, node in enumerate(drawing.nodes)]
    heads = [{"x": 30 + position * 64, "layer": layer} for position, layer in enumerate(sorted(columns))]
    edges = [{"from": at[a], "to": at[b], "weight": weight} for a, b, weight in drawing.edges]
    return {"nodes": nodes, "edges": edges, "columns": heads, "width": 60 + 64 * (len(columns) - 1), "height": height}
