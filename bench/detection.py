"""Tables and plots of docs/detection.md: `python bench/detection.py`.

Reads bench/results/detection.json, which `onp zoo learn` writes. Writes the plots beside the page (`--docs`) and the tables
into it, between its markers. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from onp.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "tails": "tails, norm within kinds (shipped)",
    "plain_sum": "sum of tails",
    "weighted": "sum of weighted tails",
    "boosting": "gradient boosting",
    "set_network": "set network",
    "hand_made": "hand-made rule",
}
COLOURS = {
    **{"tails": "#1f5fa8", "plain_sum": "#00838f", "weighted": "#6a1b9a"},
    **{"boosting": "#2e7d32", "set_network": "#ef6c00", "hand_made": "#c62828"},
}
NORMS = ("batch norms", "statistics taken anew", "no batch norms", "all")
COLUMNS = (
    ("auc", "ROC-AUC", False),
    ("tpr", "TPR at FPR 1 %", True),
    ("cross_entropy", "cross-entropy", False),
    ("calibration_error", "calibration error", True),
    ("right_class", "right class", True),
)
Document = dict[str, Any]


def cell(value: list[float | None], percent: bool) -> str:
    """A figure with its interval."""
    if value[0] is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    text = [f"{scale * each:.{digits}f}" if each is not None else "?" for each in value]
    return f"{text[0]} ({text[1]} to {text[2]})"


def models(document: Document) -> str:
    """Every model, a row."""
    return _rows(document["models"])


def splits(document: Document) -> str:
    """One split of clean images and the mean of three."""
    return _rows(document["several_splits"])


def _rows(rows: Document) -> str:
    lines = ["| | " + " | ".join(title + (", %" if percent else "") for _, title, percent in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for name, row in rows.items():
        lines.append(f"| {NAMES.get(name, name)} | " + " | ".join(cell(row[key], p) for key, _, p in COLUMNS) + " |")
    return "\n".join(lines)


def subsets(document: Document) -> str:
    """Subsets of the zoo, learned and by hand."""
    lines = ["| networks | backdoored, clean | TPR, % | FPR, % | AUC | TPR by hand, % | AUC by hand |", "|---" * 7 + "|"]
    for name, row in document["subsets"].items():
        hand = document["subsets_hand_made"][name]
        aucs = ["-" if each["auc"] is None else f"{each['auc']:.3f}" for each in (row, hand)]
        figures = (cell(row["tpr"], True), cell(row["fpr"], True), aucs[0], cell(hand["tpr"], True), aucs[1])
        lines.append(f"| {name} | {row['backdoored']}, {row['clean']} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def families(document: Document) -> str:
    """AUC by attack family and norm type, learned and by hand."""
    lines = ["| attack family | " + " | ".join(NORMS) + " | all, by hand |", "|---" * (len(NORMS) + 2) + "|"]
    for name, row in document["auc"].items():
        cells = [_auc(row[norm]) for norm in NORMS]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {_auc(document['auc_hand_made'][name]['all'])} |")
    return "\n".join(lines)


def detectors(document: Document) -> str:
    """AUC of each detector alone by attack family, all norm types."""
    names = list(document["auc"])
    lines = ["| detector | all | " + " | ".join(names) + " | without batch norms |", "|---" * (len(names) + 3) + "|"]
    for name, whole in sorted(document["detectors_alone"].items(), key=lambda item: -item[1]):
        rows = document["detectors"][name]
        without = [rows[family]["no batch norms"] for family in names]
        known = [(each["auc"], each["networks"]) for each in without if each["auc"] is not None and each["networks"]]
        mean = sum(auc * n for auc, n in known) / max(sum(n for _, n in known), 1)
        cells = [f"{whole:.3f}", *(_auc(rows[family]["all"]) for family in names), f"{mean:.2f}" if known else "-"]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def decisions(document: Document) -> str:
    """What the two thresholds make of the networks."""
    limits, rows = document["thresholds"], document["decisions"]
    limit = f"backdoor from {limits['backdoor_from']:.3f}, no evidence below {limits['none_below']:.3f}"
    lines = [f"| {limit} | % |", "|---|---|"]
    titles = {
        "clean_as_backdoor": "clean networks taken for backdoored",
        "clean_inconclusive": "clean networks inconclusive",
        "backdoored_missed": "backdoored networks missed",
        "backdoored_inconclusive": "backdoored networks inconclusive",
    }
    lines += [f"| {title} | {cell(rows[key], True)} |" for key, title in titles.items()]
    return "\n".join(lines)


def recipe_only(document: Document) -> str:
    """AUC and cross-entropy of the predictors that see the recipe alone."""
    rows = document["recipe_only"].items()
    lines = ["| | ROC-AUC | cross-entropy (0.693 at chance) |", "|---|---|---|"]
    return "\n".join(lines + [f"| {k} | {cell(v['auc'], False)} | {cell(v['cross_entropy'], False)} |" for k, v in rows])


def wrong(document: Document) -> str:
    """Networks that the threshold of 1 % false positives gets wrong."""
    lines = [
        "| network | data | trained, after | backdoors (poison rate, ASR) | probability | anomaly indices of the target |",
        "|---" * 6 + "|",
    ]
    for each in document["wrong"]:
        planted = ", ".join(
            f"{b['attack']} ({100 * b['poison_rate']:.1f} %, {100 * (b['asr'] or 0):.0f} %)" for b in each["backdoors"]
        )
        highest = sorted(each["anomaly_index"].items(), key=lambda item: -item[1])[:4]
        probability = ", ".join(f"{value:.2f}" for value in each["probability"])
        lines.append(
            f"| {each['index']}: `{each['arch']}` | {each['data']} | ACC {100 * each['acc']:.0f} %, {each['after']} "
            f"| {planted or 'clean'} | {probability} | {', '.join(f'{name} {value:.1f}' for name, value in highest)} |"
        )
    return "\n".join(lines)


def zoo(document: Document) -> str:
    """What the figures are of."""
    row = document["zoo"]
    unused = f"{row['left_out']} not used (one that does not, or an accuracy below twice that of chance)"
    return (
        f"{row['networks']} networks: {row['clean']} clean, {row['backdoored']} with a backdoor that works, {unused}; "
        f"{row['rows']} splits of 500 clean images. Version {document['version']}."
    )


TABLES = {
    "models": models,
    "splits": splits,
    "decisions": decisions,
    "subsets": subsets,
    "families": families,
    "detectors": detectors,
    "recipe": recipe_only,
    "wrong": wrong,
    "zoo": zoo,
}
"""By marker: `<!-- NAME -->` to `<!-- /NAME -->`."""


def with_tables(text: str, document: Document) -> str:
    """The page with every table between its markers anew."""
    for name, table in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert begin and end, f"the page has no markers for {name}"
        text = f"{before}{begin}\n{table(document)}\n\n{end}{after}"
    return text


def plot_roc(document: Document, path: Path) -> None:
    """Rows of networks and splits; the left half of the axis is what matters, so it is drawn again, larger."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    for name, points in document["roc"].items():
        x, y = zip(*points, strict=True)
        label = f"{NAMES[name]}: AUC {document['models'][name]['auc'][0]:.3f}"
        for axis in axes:
            axis.step(x, y, where="post", color=COLOURS[name], label=label, linewidth=1.6 if name == "tails" else 1.1)
    axes[0].set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axes[1].set(xlabel="false-positive rate, up to 5 %", xlim=(0, 0.05), ylim=(0.4, 1.01))
    axes[1].axvline(0.01, color="black", linewidth=0.8, linestyle=":")
    axes[0].legend(fontsize=8, loc="lower right")
    _save(figure, axes, path)


def plot_reliability(document: Document, path: Path) -> None:
    """Share of backdoored networks against the probability, by bin; the area of a point is its number of rows."""
    figure, axis = pyplot.subplots(figsize=(4.6, 4.2), constrained_layout=True)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for name in ("tails", "hand_made"):
        rows = document["reliability"][name]
        x, y, sizes = ([row[key] for row in rows] for key in ("probability", "backdoored", "rows"))
        axis.plot(x, y, color=COLOURS[name], linewidth=1)
        error = document["models"][name]["calibration_error"][0]
        axis.scatter(x, y, np.sqrt(sizes) * 8, color=COLOURS[name], label=f"{NAMES[name]}: {100 * error:.1f} % off")
    axis.set(xlabel="probability of a backdoor", ylabel="share of networks with one", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="upper left")
    _save(figure, [axis], path)


def plot_families(document: Document, path: Path) -> None:
    """AUC by attack family and norm type, one panel for the verdict and one for the hand-made rule."""
    names = list(document["auc"])
    figure, axes = pyplot.subplots(1, 2, figsize=(9.6, 4.0), constrained_layout=True)
    for axis, part, title in zip(axes, ("auc", "auc_hand_made"), (NAMES["tails"], NAMES["hand_made"]), strict=True):
        _heat(axis, names, NORMS, {name: [document[part][name][norm] for norm in NORMS] for name in names})
        axis.set_title(title, fontsize=9)
    _save(figure, [], path)


def plot_detectors(document: Document, path: Path) -> None:
    """AUC of each detector alone by attack family, a panel a norm type."""
    names = list(document["auc"])
    ordered = sorted(document["detectors_alone"], key=lambda name: -document["detectors_alone"][name])
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 0.32 * len(ordered) + 1.8), constrained_layout=True, sharey=True)
    for axis, norm in zip(axes, NORMS, strict=False):
        _heat(axis, ordered, names, {each: [document["detectors"][each][name][norm] for name in names] for each in ordered})
        axis.set_title(norm, fontsize=9)
    _save(figure, [], path)


def _heat(axis: Any, rows: list[str], columns: Any, values: dict[str, list[Document]]) -> None:
    grid = np.array([[np.nan if each["auc"] is None else each["auc"] for each in values[row]] for row in rows])
    known = np.array([[each["networks"] > 0 for each in values[row]] for row in rows])
    grid[~known] = np.nan
    axis.imshow(grid, vmin=0.5, vmax=1, cmap="RdYlGn", aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)


def _auc(each: Document) -> str:
    """An AUC with the number of backdoored networks it is of."""
    return "-" if each["auc"] is None or not each["networks"] else f"{each['auc']:.2f} ({each['networks']})"


def _save(figure: Any, axes: Any, path: Path) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


PLOTS = {"roc": plot_roc, "reliability": plot_reliability, "families": plot_families, "detectors": plot_detectors}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "results" / "detection.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    document = json.loads(options.figures.read_text())
    page = options.docs / "detection.md"
    write_atomically(page, with_tables(page.read_text(), document))
    for name, draw in PLOTS.items():
        draw(document, options.docs / f"detection_{name}.png")


if __name__ == "__main__":
    main()
