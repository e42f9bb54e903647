"""Whether a repaired network still obeys triggers."""

from __future__ import annotations

from onp.defend.case import Case
from onp.defend.outcome import Outcome
from onp.defend.run import Run


def verify_pipeline(case: Case, run: Run) -> Outcome:
    """Fit fresh triggers on a repaired network and tell whether they work better than on clean ones."""
    raise NotImplementedError
