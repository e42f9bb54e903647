"""The table and the plot of what bench/evaluator.py measured: `python bench/plot_evaluator.py [bench/results/evaluator.json]`.

Writes the plot beside the file, as PNG, and prints the table as Markdown. Needs matplotlib.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def table(document: dict) -> str:
    lines = ["| network | workload | s a mask (range, n) | floor | times faster than |", "|---|---|---|---|---|"]
    for name, found in document["cases"].items():
        for workload, row in found["workloads"].items():
            each = row["seconds_a_mask"]
            ratios = ", ".join(f"{peer}: {ratio:.1f}" for peer, ratio in row["times_faster"].items())
            cell = f"{each['median']:.3g} ({each['min']:.3g} to {each['max']:.3g}, {each['n']})"
            lines.append(f"| {name} | {workload} | {cell} | {row['floor']:.3g} | {ratios} |")
    return "\n".join(lines)


def plot(document: dict, path: Path) -> None:
    """Medians with their range, one panel a curve; peers as lines, whose time does not depend on the mask."""
    found = document["curves"]
    peers = document["cases"].get("preact_resnet18", {}).get("peers", {})
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.6 * len(found), 3.6), constrained_layout=True)
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        x, median, low, high = zip(*points, strict=True)
        axis.plot(x, median, "o-", color="#1f5fa8", label="Evaluator")
        axis.fill_between(x, low, high, color="#1f5fa8", alpha=0.2, linewidth=0)
        for number, (peer, each) in enumerate(peers.items()):
            axis.axhline(1 / each["median"], color="black", linestyle=(0, (1 + 3 * number, 2)), linewidth=1, label=peer)
        axis.set(xlabel=name, ylabel="masks per second", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=7)
    where = document["hardware"]["gpu"] or f"{document['hardware']['model']}, {document['hardware']['threads']} threads"
    figure.suptitle(f"PreActResNet18 on {where}, {document['date']}", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "evaluator.json")
    document = json.loads(source.read_text())
    plot(document, source.with_suffix(".png"))
    print(table(document))
