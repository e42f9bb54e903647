"""Progress with an estimate of the time left: a bar on a terminal, a line every few seconds elsewhere, or JSON lines."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onp.errors import printable

Listener = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done and all of its steps."""


@dataclass(frozen=True)
class Pace:
    """How often progress is shown where there is no bar, and what is called with every step."""

    lines: float = 10.0  #: seconds between two lines
    events: float = 1.0  #: seconds between two JSON lines
    clock: Callable[[], float] = time.monotonic
    listener: Listener | None = None


class Stage:
    """One stage of known length; call `advance` as work is done.

    Args:
        name: of the stage.
        total: steps, 0 where that is not known.
        bar: on a terminal; None elsewhere.
        show: "lines", "events" (JSON lines) or "nothing", where there is no bar.
        pace: of what is shown.
    """

    def __init__(self, name: str, total: int, bar: Progress | None, show: str, pace: Pace = Pace()) -> None:
        self.name, self.total, self.done = name, max(total, 1), 0
        self._bar, self._show, self._pace = bar, show, pace
        self._task = bar.add_task(name, total=total or None, note="") if bar else None
        self._last = pace.clock()
        self._first: tuple[float, int] | None = None  # when steps began to be counted, and how many were done then
        if total and bar is None and show == "lines":
            say(f"{name} ...")
        self._tell()

    def advance(self, steps: int = 1, note: str = "", known: bool = False, left: float | None = None) -> None:
        """Count steps as done.

        Args:
            steps: how many more.
            note: short text to show beside the bar.
            known: an earlier run did them, so that they are no measure of those to come.
            left: seconds that the rest takes, where the caller knows better than the pace of the steps.
        """
        self.done += steps
        self._tell()
        if known and self._first is not None:
            self._first = self._first[0], self._first[1] + steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=printable(note))
            return
        now = self._pace.clock()
        # What comes before the first step is no measure of the steps.
        self._first = self._first or (now, self.done)
        start, before = self._first
        between = self._pace.events if self._show == "events" else self._pace.lines
        if (left is None and self.done == before) or self._show == "nothing" or now - self._last < between:
            return
        self._last = now
        if left is None:
            left = (now - start) / (self.done - before) * max(self.total - self.done, 0)
        if self._show == "events":
            event("progress", stage=self.name, done=self.done, total=self.total, seconds_left=round(left, 1))
        else:
            say(f"{self.name}: {self.done}/{self.total}, about {left:.0f} s left {note}".rstrip())

    def _tell(self) -> None:
        if self._pace.listener is not None:
            self._pace.listener(self.name, self.done, self.total)

    def print(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(printable(line, None), highlight=False, markup=False)
        else:
            say(line)


@contextmanager
def stage(name: str, total: int, quiet: bool = False, machine: bool = False, pace: Pace = Pace()) -> Iterator[Stage]:
    """Show the progress of a stage on stderr.

    Args:
        name: of the stage.
        total: steps, 0 where that is not known.
        quiet: show nothing.
        machine: JSON lines in place of a bar or text.
        pace: of lines.
    """
    console = Console(stderr=True)
    if quiet or machine or not console.is_terminal:
        yield Stage(name, total, None, "nothing" if quiet else "events" if machine else "lines", pace)
        return
    known = (TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), *(known if total else ()))
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stage(name, total, bar, "lines", pace)


def say(line: str) -> None:
    """A line on stderr, at once; it may hold names from files."""
    print(printable(line, None), file=sys.stderr, flush=True)


def event(kind: str, **facts: Any) -> None:
    """A JSON line on stderr: {"event": kind, ...}."""
    say(json.dumps({"event": kind, **facts}))
