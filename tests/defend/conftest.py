"""Fixtures of the tests of `onp.defend`."""

import pytest
from helpers.reports import made_detection

from onp.defend.report.sections import SurrogateSection


@pytest.fixture
def detection():
    """Detection as a report holds it; class 0 is the target, class 3 was not measured by detectors that invert triggers."""
    surrogate = SurrogateSection("patch", target=0, weight=1.0, anomaly_index=3.5, success=1.0, cost=2.0, bn_match=None)
    return made_detection(surrogates=(surrogate,))
