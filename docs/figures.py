"""Draws the figures of how-it-works.md: `python docs/figures.py` (needs `pip install '.[plots]'`; about half a minute)."""

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from safetensors.torch import load_file

import onp
from onp.defend.demos import ARCH, clean_images, demo
from onp.model.archs import build_network

FOLDER = Path(__file__).parent / "figures"
INK, PAPER, ACCENT, SOFT = "#263238", "#eceff1", "#c62828", "#90a4ae"
STAGES = (
    ("Read", "checkpoint, no unpickling;\nexported graph;\nbuild / score / holdout"),
    ("BN statistics", "running means against\nclean class means:\nresidual, prior shift"),
    ("Detect", "nine detectors,\nanomaly index per class,\ntarget class"),
    ("Invert triggers", "four families and PGD,\nmatched to the residual:\ntrigger bank"),
    ("Search", "GNN policy toggles units,\nevaluator scores masks,\nPPO on group advantages"),
    ("Prune", "edit the state dict,\noriginal format"),
    ("Audit", "holdout images,\nnew triggers,\noriginal code"),
)
DETECTORS = {
    "bn_shift": "#1565c0", "prior_shift": "#64b5f6", "latent": "#6a1b9a", "augmentation_bias": "#ba68c8", "patch": "#c62828",
    "perturbation": "#ef6c00", "low_frequency": "#f9a825", "warp": "#2e7d32", "pgd": "#795548",
}  # fmt: skip


def pipeline(path: Path) -> None:
    """The stages of a run as boxes, four above and three below."""
    figure, axes = plt.subplots(figsize=(9.6, 3.6))
    axes.set(xlim=(0, 4.1), ylim=(-0.15, 2))
    axes.axis("off")
    places = [(0.05 + column, 1.1) for column in range(4)] + [(3.05 - column, 0.05) for column in range(3)]
    for (name, text), (x, y) in zip(STAGES, places, strict=True):
        axes.add_patch(FancyBboxPatch((x, y), 0.82, 0.75, boxstyle="round,pad=0.03", facecolor=PAPER, edgecolor=SOFT))
        axes.text(x + 0.41, y + 0.63, name, ha="center", va="center", weight="bold", color=INK, size=11)
        axes.text(x + 0.41, y + 0.27, text, ha="center", va="center", color=INK, size=7.8, linespacing=1.4)
    arrow = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0}
    for (x, y), (to_x, to_y) in pairwise(places):
        if y == to_y:
            side = 1 if to_x > x else -1
            start, end = x + 0.41 + 0.45 * side, to_x + 0.41 - 0.45 * side
            axes.annotate("", (end, y + 0.38), (start, y + 0.38), arrowprops=arrow)
        else:
            axes.annotate("", (x + 0.41, to_y + 0.79), (x + 0.41, y - 0.04), arrowprops=arrow)
    axes.text(0.46, 0.42, "report, mask,\nrepaired checkpoint", ha="center", va="center", color=INK, size=9.5, style="italic")
    axes.annotate("", (0.86, 0.43), (1.02, 0.43), arrowprops=arrow)
    _save(figure, path)


def detection(path: Path) -> None:
    """The score of every class, stacked by detector, on the embedded BadNets victim and on the clean network."""
    images = clean_images()
    figure, both = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True, layout="constrained")
    for axes, name, title in zip(
        both, ("badnets", "clean"), ("backdoored (badnets, target T-shirt/top)", "clean"), strict=True
    ):
        model = build_network(ARCH).eval()
        model.load_state_dict(load_file(demo(name).model))
        evidence = onp.detect(model, images.images, images.labels, norm="fashion-mnist", quiet=True)
        _stacked(axes, evidence, list(images.class_names))
        axes.set_title(title, size=10, color=INK)
    both[0].set_ylabel("score of the class")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)
    _save(figure, path)


def _stacked(axes: Axes, evidence: onp.Evidence, classes: list[str]) -> None:
    indices = {name: np.asarray(values) for name, values in evidence.anomaly_index.items()}
    indices["prior_shift"] = np.minimum(indices["prior_shift"], np.maximum(indices["latent"], indices["bn_shift"]))
    bottom = np.zeros(len(classes))
    for name, colour in DETECTORS.items():
        part = np.clip(indices[name] - 1, 0, 2.5)
        axes.bar(classes, part, bottom=bottom, color=colour, label=name, width=0.7)
        bottom += part
    assert np.allclose(bottom, evidence.score), (bottom, evidence.score)
    axes.axhline(evidence.threshold, color=INK, linestyle="--", linewidth=1)
    axes.text(len(classes) - 0.5, evidence.threshold + 0.1, "threshold", ha="right", size=8.5, color=INK)
    axes.tick_params(axis="x", rotation=60, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    pipeline(FOLDER / "pipeline.png")
    detection(FOLDER / "detection.png")
