"""A report of a repair, made without a network."""

from dataclasses import replace

import torch

from onp.defend.config import DefendConfig
from onp.defend.presets import PRESETS
from onp.defend.report.audit import Figures
from onp.defend.report.report import Report
from onp.defend.report.sections import (
    BudgetSection,
    DataSection,
    DetectionSection,
    FileDigest,
    ModelSection,
    Provenance,
    PrunableLayer,
    ReferenceSection,
)
from onp.engine.metrics import Share

ORIGINAL = FileDigest("model", "net one.pt", "ab" * 32, 1234)
REPAIRED = FileDigest("repaired model", "net one.pt", "cd" * 32, 1234)
DATA = FileDigest("data", "clean", "ef" * 32, 99)


def figures(acc: int, patch: int, warp: int, attacked: int) -> Figures:
    """Of 100 images, of which 90 are of other classes than the target."""
    surrogates = {"patch": Share(patch, 90), "warp": Share(warp, 90)}
    asr, ra = Share(attacked, 90), Share(88 - attacked, 90)
    return Figures(Share(acc, 100), surrogates, asr, ra, Share(1, 90), torch.full((100, 4), 0.25))


def made_detection(**changes) -> DetectionSection:
    """Of four classes, of which class 0 is the target; triggers were inverted for the first three."""
    index = (5.0, 0.1, 0.2, float("nan"))
    section = DetectionSection(
        probability=0.987,
        per_class=(0.97, 0.01, 0.006, 0.001),
        class_names=("a", "b", "c", "d"),
        evidence={"patch": (4.5, 0.0, 0.0, 0.0), "warp": (1.2, 0.3, 0.0, 0.0), "latent": (-0.4, 0.0, 0.1, 0.0)},
        anomaly_index={"patch": index, "warp": index},
        backdoor_from=0.8,
        none_below=0.2,
        passes=((0.97, 0.01, 0.006, 0.001),),
        after_repairs=(),
        surrogates=(),
    )
    return replace(section, **changes)


def repaired_report() -> Report:
    """Six units of two layers pruned."""
    return Report(
        decision="repaired",
        headline="Evidence of a backdoor; 6 units pruned; the strongest surrogate trigger still reaches 12.2 %.",
        reason="Class a was detected as the target of a backdoor (probability 97.0 %).",
        warning=None,
        next_steps=("Measure the repaired checkpoint.",),
        notes=(),
        target_classes=(0,),
        target_name="a",
        model=ModelSection("net one.pt", "mynet:Net", (1, 8, 8), 4, (PrunableLayer("conv", 8), PrunableLayer("fc.0", 16)), ()),
        data=DataSection("clean", 250, 75, 75, 100, "half", None),
        detection=made_detection(),
        before=figures(95, 90, 80, 85),
        after=figures(94, 5, 11, 2),
        clean_reference=ReferenceSection(24, "2026-11-29", {"patch": 0.2, "warp": None}),
        pruned={"conv": [1, 5], "fc.0": [0, 2, 3, 15]},
        units=24,
        budget=BudgetSection(100, 50.0, 12.0),
        timings={"scoring": 1.0},
        config=DefendConfig(model="net one.pt", data="clean", norm="half"),
        preset=PRESETS["fast"],
        provenance=Provenance("2026-11-29T10:00:00Z", "0.1.0", {"clean_reference.json": "1"}, (ORIGINAL, DATA), (REPAIRED,)),
    )
