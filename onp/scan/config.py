"""The options of `onp.scan`: those that it shares with `onp.defend` have the text that they have there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from onp.defend.config import DefendConfig
from onp.options import option

SHARED = ("arch", "norm", "image_size", "data", "class_order", "expect_acc", "device", "preset", "seed")
"""Options of `DefendConfig` that a scan hands on."""
_OF_DEFEND = {field.name: field for field in dataclasses.fields(DefendConfig)}


def _as_in_defend(name: str, **changed: Any) -> Any:
    of_defend = _OF_DEFEND[name]
    return dataclasses.field(default=of_defend.default, metadata={**of_defend.metadata, **changed})


@dataclass(frozen=True)
class ScanConfig:
    """Which networks to scan and how."""

    models: tuple[str, ...] = option(
        (),
        "folders that are searched for checkpoints, checkpoints, or lists of them: .txt with a path a line; .toml or .jsonl, "
        "which may give each its own path, arch, norm, image-size, data, class-order and expect-acc",
        metavar="DIR|LIST|FILE",
        positional=True,
    )
    arch: str | None = _as_in_defend("arch")
    norm: str | None = _as_in_defend("norm")
    image_size: int | None = _as_in_defend("image_size")
    data: str | None = _as_in_defend("data")
    class_order: str | None = _as_in_defend("class_order")
    expect_acc: float | None = _as_in_defend("expect_acc")
    out: str | None = option(
        None,
        "new or empty folder for results.jsonl, the tables (.md, .csv), index.html, report.sarif and a report for each model",
        metavar="DIR",
        group="output",
    )
    device: str = _as_in_defend("device")
    preset: str = _as_in_defend("preset", group="the run")
    seed: int = _as_in_defend("seed", help="same seed, same machine: same probabilities")
    workers: int = option(
        0,
        "processes of one thread each; 0: as many as processors and memory allow, and none of its own for a single model",
        metavar="N",
        group="the run",
    )
    ray: str | None = option(
        None,
        "run the models on a Ray cluster that reads and writes the same folders: auto, or an address; pip install '.[ray]'",
        metavar="ADDRESS",
        group="the run",
    )
    gpu_share: float = option(
        1.0, "what a model takes of a GPU and its memory on a Ray cluster", metavar="SHARE", group="the run"
    )
    resume: bool = option(
        False,
        "continue the scan in --out, or begin it; a model with the same content and options is done once",
        group="the run",
    )
    fail_on: str = _as_in_defend(
        "fail_on",
        help="what ends with an exit code other than 0: evidence or an unsafe checkpoint; inconclusive: also a "
        "probability between the thresholds, or a model that could not be scanned",
    )
    quiet: bool = _as_in_defend("quiet")
    json: bool = option(
        False, "for machines: a JSON line for each model on stdout, progress as JSON lines on stderr", group="output"
    )
