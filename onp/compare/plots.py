"""The three plots of a comparison."""

from __future__ import annotations

import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onp.files import write_atomically

Row = dict[str, Any]
MARKERS = "osD^v<>pPX*hd"
PER_CENT = (-3, 103)  # of an axis from 0 to 100 % with room for the marks at its ends


def write_plots(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write acc_asr.png, attacks.png and time_der.png; returns their names, none without matplotlib or attacked victims."""
    rows = [row for row in rows if row["attack"] != "none" and "error" not in row]
    if not rows:
        return []
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No plots: they need matplotlib; pip install '.[plots]'.", file=sys.stderr)
        return []
    names = list(dict.fromkeys(row["defence"] for row in rows))
    # Figure rather than pyplot: no display, no state, nothing to close.
    scatter, bars, time = (Figure(figsize=size, layout="constrained") for size in ((8, 5), (10, 5), (8, 5)))
    _scatter(scatter, rows, names)
    _bars(bars, rows, names)
    _time(time, rows, names)
    written = []
    for name, figure in (("acc_asr.png", scatter), ("attacks.png", bars), ("time_der.png", time)):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110)
        write_atomically(folder / name, buffer.getvalue())
        written.append(name)
    return written


def _style(index: int) -> dict[str, Any]:
    from matplotlib import colormaps

    light, hue = divmod(index, 10)
    return {"color": colormaps["tab20"](2 * hue + light % 2), "marker": MARKERS[index % len(MARKERS)]}


def _scatter(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    axes = figure.subplots()
    for index, name in enumerate(names):
        mine = [row for row in rows if row["defence"] == name]
        lost = [100 * (row["acc_before"] - row["acc"]) for row in mine]
        axes.scatter(lost, [100 * row["asr"] for row in mine], label=name, alpha=0.8, **_style(index))
    _before(axes, rows, place=0.0)
    axes.set(
        xlabel="lost accuracy, points",
        ylabel="ASR after the defence, %",
        title="One mark a victim and seed; bottom left is best",
        ylim=PER_CENT,
    )
    _legend(axes, len(names))


def _bars(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    victims = list(dict.fromkeys(row["victim"] for row in rows))
    axes = figure.subplots()
    width = 0.85 / len(names)
    for index, name in enumerate(names):
        values = [[100 * r["asr"] for r in rows if r["defence"] == name and r["victim"] == victim] for victim in victims]
        means = [statistics.mean(each) if each else float("nan") for each in values]
        spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(victims))]
        axes.bar(places, means, width, yerr=spread, label=name, color=_style(index)["color"], edgecolor="black", linewidth=0.3)
    for place, victim in enumerate(victims):
        before = next(100 * row["asr_before"] for row in rows if row["victim"] == victim)
        label = "before" if place == 0 else None
        axes.hlines(before, place - 0.45, place + 0.45, color="black", linestyle=":", linewidth=1, label=label)
    axes.set(ylabel="ASR after the defence, %", title="Mean and standard deviation over seeds", ylim=(0, 103))
    axes.set_xticks(range(len(victims)), victims, rotation=20)
    _legend(axes, len(names))


def _time(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.subplots()
    for index, name in enumerate(names):
        mine = [row for row in rows if row["defence"] == name]
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        if seconds:
            axes.scatter([statistics.mean(seconds)], [statistics.mean(row["der"] for row in mine)], label=name, **_style(index))
    axes.set(xlabel="seconds a victim", ylabel="DER", title="Mean over victims and seeds; top left is best", xscale="log")
    # Some of the round numbers 1, 2 and 5 at least, in plain digits: the default would read 2 x 10^-1.
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2, high * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(axes, len(names))


def _before(axes: Any, rows: Sequence[Row], place: float) -> None:
    """A mark for each victim as it was given."""
    values = list({row["victim"]: 100 * row["asr_before"] for row in rows}.values())
    axes.scatter([place] * len(values), values, label="before", color="black", marker="_", s=120, zorder=3)


def _legend(axes: Any, count: int) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", ncols=1 + count // 24)
