"""Inversions that do not depend on each other, each in a thread of its own; see `onp.threads`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

import torch

from onp.detect.config import DetectRun
from onp.threads import pool

Result = TypeVar("Result")


def side_by_side(tasks: Sequence[Callable[[DetectRun], Result]], run: DetectRun, device: torch.device) -> list[Result]:
    """The results of all tasks, in their order; computed one after the other on a GPU and where there is one thread.

    Args:
        tasks: what each is called with is `run`, whose progress is shown by the caller's thread, with a share of the memory.
        run: settings, seed, progress and resume store.
        device: of the network.

    Raises:
        Whatever a task or the progress raises; the other tasks end with their next step.

    Example:
        >>> side_by_side([lambda run: run.seed, lambda run: run.seed + 1], DetectRun(seed=3), torch.device("cpu"))
        [3, 4]
    """
    workers = min(torch.get_num_threads(), len(tasks)) if device.type == "cpu" else 1
    if workers <= 1:
        return [task(run) for task in tasks]
    news: SimpleQueue[Future[Result] | tuple[int, bool]] = SimpleQueue()
    stopped = Event()

    def count(steps: int = 1, *, known: bool = False) -> None:
        if stopped.is_set():
            raise _Stopped
        news.put((steps, known))

    shared = replace(run, progress=count, values_at_once=max(1, run.values_at_once // workers))
    futures = [pool(workers).submit(task, shared) for task in tasks]
    for future in futures:
        future.add_done_callback(news.put)
    try:
        left = len(futures)
        while left:
            new = news.get()
            if isinstance(new, Future):
                new.result()
                left -= 1
            else:
                run.progress(new[0], known=new[1])
        return [future.result() for future in futures]
    finally:
        stopped.set()
        for future in futures:
            future.cancel()
        wait(futures)


class _Stopped(Exception):
    """Another task failed, or the caller was interrupted."""
