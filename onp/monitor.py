"""What a run says while it works, and how long each of its stages took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onp import progress


class Monitor:
    """Shows the stages of a run on stderr and keeps their `seconds`, in order."""

    def __init__(self, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._quiet = quiet

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[progress.Stage]:
        """Time a stage; one of `total` steps is shown with an estimate, one without is not shown."""
        start = time.monotonic()
        try:
            with progress.stage(name, total, self._quiet or not total) as stage:
                yield stage
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
