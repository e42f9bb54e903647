"""Draws the figures of how-it-works.md: `python docs/figures.py` (needs `pip install '.[plots]'`; about half a minute)."""

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from safetensors.torch import load_file

import onp
from onp.defend.demos import ARCH, clean_images, demo
from onp.defend.report.probabilities import in_words
from onp.model.archs import build_network

FOLDER = Path(__file__).parent / "figures"
INK, PAPER, ACCENT, SOFT = "#263238", "#eceff1", "#c62828", "#90a4ae"
STAGES = (
    ("Read", "checkpoint, no unpickling;\nexported graph;\nbuild / score / holdout"),
    ("BN statistics", "running means against\nclean class means:\nresidual, prior shift"),
    ("Detect", "detectors,\nprobability of a backdoor,\ntarget class"),
    ("Invert triggers", "four families and PGD,\nmatched to the residual:\ntrigger bank"),
    ("Search", "saliency or a GNN policy\ntoggles units, evaluator\nscores masks"),
    ("Prune and heal", "units at zero; the rest\nlearns to ignore triggers,\noriginal format"),
    ("Audit", "holdout images,\nnew triggers,\noriginal code"),
)


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
    """What each detector adds to the log odds of every class, on the embedded BadNets victim and on the clean network."""
    images = clean_images()
    figure, both = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True, layout="constrained")
    for axes, name, title in zip(both, ("badnets", "clean"), ("badnets, target T-shirt/top", "clean"), strict=True):
        model = build_network(ARCH).eval()
        model.load_state_dict(load_file(demo(name).model))
        evidence = onp.detect(model, images.images, images.labels, norm="fashion-mnist", quiet=True)
        _stacked(axes, evidence, list(images.class_names))
        axes.set_title(f"{title}: probability of a backdoor {in_words(evidence.probability)}", size=10, color=INK)
    both[0].set_ylabel("added to the log odds")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)
    _save(figure, path)


def _stacked(axes: Axes, evidence: onp.Evidence, classes: list[str]) -> None:
    """What speaks for a class upwards, what speaks against it downwards."""
    up, down = np.zeros(len(classes)), np.zeros(len(classes))
    for name, colour in zip(evidence.evidence[0], colormaps["tab20"].colors, strict=False):
        part = np.array([of_class[name] for of_class in evidence.evidence])
        axes.bar(classes, part, bottom=np.where(part > 0, up, down), color=colour, label=name, width=0.7)
        up, down = up + part.clip(0), down + part.clip(None, 0)
    axes.axhline(0, color=INK, linewidth=0.8)
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
