"""The axes and marks of the plots."""

import pytest
from helpers.small_tables import outcome_row

from onp.compare.plots import _bars, _scatter, _time

ROWS = [outcome_row(0, 0.02, 0.25), outcome_row(1, 0.06, 0.35), outcome_row(0, 0.05, 0.3) | {"defence": "onp", "victim": "w"}]


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure()


@pytest.mark.parametrize("draw", [_scatter, _bars])
def test_asr_has_the_whole_axis_and_a_mark_of_before(draw, figure):
    draw(figure, ROWS, ["clp", "onp"])
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low <= 0 < 100 < high
    assert [text.get_text() for text in axes.get_legend().get_texts()].count("before") == 1


def test_seconds_are_in_plain_digits(figure):
    _time(figure, ROWS, ["clp", "onp"])
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both") if label.get_text()]
    assert {"0.2", "0.5"} <= set(labels) and not any("^" in label or "times" in label for label in labels)
