"""Fixtures of the tests of `onp.defend`."""

import pytest

from onp.defend.report.sections import DetectionSection, SurrogateSection


@pytest.fixture
def detection():
    """Detection scores as a report holds them; class 0 is the target, class 3 could not be scored."""
    score = (5.0, 0.1, 0.2, float("nan"))
    surrogate = SurrogateSection("patch", target=0, weight=1.0, anomaly_index=3.5, success=1.0, cost=2.0, bn_match=None)
    return DetectionSection(score, {"patch": score, "warp": score}, 4.0, None, (), (surrogate,))
