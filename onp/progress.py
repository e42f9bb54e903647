"""Progress with an estimate of the time left: a bar on a terminal, a line every few seconds elsewhere, or JSON lines."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_EVENTS = 1.0


class Stage:
    """One stage of known length; call `advance` as work is done."""

    def __init__(self, name: str, total: int, bar: Progress | None, quiet: bool, machine: bool) -> None:
        self.name, self.total, self.done = name, max(total, 1), 0
        self._bar, self._quiet, self._machine = bar, quiet, machine
        self._task = bar.add_task(name, total=total or None, note="") if bar else None
        self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when steps began to be counted, and how many were done then
        if total and bar is None and not quiet and not machine:
            say(f"{name} ...")

    def advance(self, steps: int = 1, note: str = "", known: bool = False) -> None:
        """Count `steps` more as done; `note` is a short text shown beside the bar. `known`: they were done by an earlier run,
        and are no measure of those to come."""
        self.done += steps
        if known and self._first is not None:
            self._first = self._first[0], self._first[1] + steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=note)
            return
        now = time.monotonic()
        # What comes before the first step is no measure of the steps.
        self._first = self._first or (now, self.done)
        start, before = self._first
        if self.done == before:
            return
        if self._quiet or now - self._last < (SECONDS_BETWEEN_EVENTS if self._machine else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        left = (now - start) / (self.done - before) * max(self.total - self.done, 0)
        if self._machine:
            event("progress", stage=self.name, done=self.done, total=self.total, seconds_left=round(left, 1))
        else:
            say(f"{self.name}: {self.done}/{self.total}, about {left:.0f} s left {note}".rstrip())

    def print(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            say(line)


@contextmanager
def stage(name: str, total: int, quiet: bool = False, machine: bool = False) -> Iterator[Stage]:
    """Show progress on stderr for a stage of `total` steps, 0 where that is not known: JSON lines when `machine`, nothing when
    `quiet`."""
    console = Console(stderr=True)
    if quiet or machine or not console.is_terminal:
        yield Stage(name, total, None, quiet, machine)
        return
    known = (TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), *(known if total else ()))
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stage(name, total, bar, quiet, machine)


def say(line: str) -> None:
    """A line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


def event(kind: str, **facts: Any) -> None:
    """A JSON line on stderr: {"event": kind, ...}."""
    say(json.dumps({"event": kind, **facts}))
