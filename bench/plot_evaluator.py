"""The table and the plot of what bench/evaluator.py measured: `python bench/plot_evaluator.py [bench/results/evaluator.json]`.

Prints the table as Markdown and, where the curves were measured, writes the plot beside the file, as PNG. Needs matplotlib.
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
            what = f"{name}, {found['images']} images | {workload}, {row['masks']} masks"
            lines.append(f"| {what} | {cell} | {row['floor']:.3g} | {ratios} |")
    return "\n".join(lines)


def plot(document: dict, path: Path) -> None:
    """Medians with their range, one panel a curve, for 1,000 images a mask whatever number was measured.

    Peers as lines: the time of one of their masks does not depend on the mask.
    """
    found, share = document["curves"]["masks_per_second"], document["curves"]["images"] / 1000
    case = document["cases"].get("preact_resnet18", {"peers": {}})
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.6 * len(found), 3.6), constrained_layout=True)
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        x, *rates = zip(*points, strict=True)
        median, low, high = ([share * rate for rate in values] for values in rates)
        axis.plot(x, median, "o-", color="#1f5fa8", label="Evaluator")
        axis.fill_between(x, low, high, color="#1f5fa8", alpha=0.2, linewidth=0)
        for number, (peer, each) in enumerate(case["peers"].items()):
            rate = case["images"] / 1000 / each["median"]
            axis.axhline(rate, color="black", linestyle=(0, (1 + 3 * number, 2)), linewidth=1, label=peer)
        axis.set(xlabel=name, ylabel="masks per second, 1,000 images each", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=7)
    where = document["hardware"]["gpu"] or f"{document['hardware']['model']}, {document['hardware']['threads']} thread(s)"
    figure.suptitle(f"PreActResNet18 on {where}, {document['clock']}, {document['date']}", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "evaluator.json")
    document = json.loads(source.read_text())
    print(table(document))
    if "curves" in document:
        plot(document, source.with_suffix(".png"))
