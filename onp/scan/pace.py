"""How long the rest of a scan takes."""

from __future__ import annotations

import time

from onp.scan.row import Row


class Pace:
    """Estimates how long the rest takes from how long models took that have a verdict; those that are refused take no time.

    Args:
        count: of models.
        side_by_side: how many at a time; 0 where that is not known.
    """

    def __init__(self, count: int, side_by_side: int) -> None:
        self._left, self._side_by_side = count, side_by_side
        self._seconds: list[float] = []
        self._start = time.monotonic()

    def left(self, row: Row) -> float | None:
        """Seconds, once a model is done; None as long as nothing is known."""
        self._left -= 1
        if row.decision is not None:
            self._seconds.append(row.seconds)
        if not self._seconds:
            return None
        if not self._side_by_side:
            return (time.monotonic() - self._start) / len(self._seconds) * self._left
        running = min(self._side_by_side - 1, self._left)
        # Those that run are half done on average.
        each = sum(self._seconds) / len(self._seconds)
        return each * (self._left - running / 2) / min(self._side_by_side, max(self._left, 1))
