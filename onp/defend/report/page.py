"""The page people open: one HTML file that holds everything it shows, drawn from the report and its details."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections import defaultdict
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from onp.defend.report.diagnostics import Details
from onp.defend.report.report import Report, hardware, versions
from onp.engine.metrics import Share

# Pixels of the longer side, so that a page with many images stays small: of triggers, and of images whose class changed.
PICTURE, THUMBNAIL = 224, 96
VERDICTS = {
    "repaired": "This model had a backdoor, and it was repaired.",
    "no-backdoor-evidence": "No evidence of a backdoor was found.",
    "not-repairable": "This model shows a backdoor that could not be repaired.",
}


def render(report: Report, details: Details) -> str:
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
    environment.globals["difference"] = difference
    names = details.class_names
    # The network may know classes of which no image was given.
    environment.globals["class_name"] = lambda k: names[k] if 0 <= k < len(names) else f"class {k}" if k >= 0 else "unknown"
    return environment.get_template("report.html").render(
        report=report,
        details=details,
        verdict=VERDICTS[report.decision],
        rows=_rows(report),
        classes=_classes(report, details),
        graph=_graph(details),
        layers=[row | {"pruned": report.pruned.get(row["name"], [])} for row in report.model["layers"]],
        settings={name: value for name, value in report.config.items() if value is not None and not isinstance(value, dict)},
        versions=versions() | {name: value for name, value in hardware().items() if value is not None},
    )


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


def _rows(report: Report) -> list[dict[str, Any]]:
    """What was measured before and after: name, meaning, which way is good, two shares."""
    before, after = report.before, report.after
    table: list[tuple[str, str, bool, Share | None, Share | None]] = [
        ("Accuracy (ACC)", "clean images given their own class", True, before.acc, after.acc)
    ]
    for family, share in before.asr_surrogate.items():
        text = "images of other classes that this kind of trigger leads to the suspected class"
        table.append((f"Surrogate ASR, {family}", text, False, share, after.asr_surrogate[family]))
    text = "clean images of other classes given the suspected class all the same; no repair goes reliably below it"
    table.append(("ASR without a trigger", text, False, before.asr_clean, after.asr_clean))
    table.append(("ASR, true trigger", "images led to the attacker's class; measured only", False, before.asr, after.asr))
    table.append(("RA, true trigger", "triggered images given their own class all the same", True, before.ra, after.ra))
    keys = ("name", "meaning", "high_is_good", "before", "after")
    return [dict(zip(keys, row, strict=True)) for row in table if row[3] is not None and row[4] is not None]


def _classes(report: Report, details: Details) -> list[dict[str, Any]]:
    """Evidence by class, loudest first; empty where the trigger was known."""
    suspicion = report.evidence.get("suspicion")
    if not suspicion:
        return []
    witnesses = report.evidence["witnesses"]
    rows = [
        {"k": k, "suspicion": value, "witnesses": {name: values[k] for name, values in witnesses.items()}}
        for k, value in enumerate(suspicion)
    ]
    return sorted(rows, key=lambda row: -row["suspicion"])


def _graph(details: Details) -> dict[str, Any] | None:
    """Positions for the picture of the graph: a column a layer, units spread over its height."""
    if not details.nodes:
        return None
    columns: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(details.nodes):
        columns[node.layer].append(index)
    height = 40 + 13 * max(len(column) for column in columns.values())
    at = {}
    for position, layer in enumerate(sorted(columns)):
        column = columns[layer]
        for row, index in enumerate(column):
            at[index] = (30 + position * 64, 24 + (height - 36) * (row + 0.5) / len(column))
    nodes = [dataclasses.asdict(node) | {"x": at[i][0], "y": at[i][1]} for i, node in enumerate(details.nodes)]
    heads = [{"x": 30 + position * 64, "layer": layer} for position, layer in enumerate(sorted(columns))]
    edges = [{"from": at[a], "to": at[b], "weight": weight} for a, b, weight in details.edges]
    return {"nodes": nodes, "edges": edges, "columns": heads, "width": 60 + 64 * (len(columns) - 1), "height": height}
