"""Work side by side: one piece a thread beats one piece on all threads, which wait for each other at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_all(task: Callable[[int], Result], items: Iterable[int], workers: int) -> list[Result]:
    """`[task(item) for item in items]`, computed by `workers` threads that share the cores; 1 computes in the caller's.

    Gradients are off in `task`, as they are per thread. The first exception of a task is raised here.
    """
    if workers == 1:
        with torch.no_grad():
            return [task(item) for item in items]
    return list(pool(workers).map(torch.no_grad()(task), items))


def pool(workers: int) -> ThreadPoolExecutor:
    """`workers` threads that share the caller's cores; gradients are on in them."""
    threads = torch.get_num_threads()
    return _pool(workers, max(1, threads // workers), threads)


@cache
def _pool(workers: int, each: int, threads: int) -> ThreadPoolExecutor:
    """`workers` threads with `each` cores; the caller keeps its `threads`."""
    made = ThreadPoolExecutor(workers, thread_name_prefix=f"onp-{workers}", initializer=_limit, initargs=(each,))
    started = Barrier(workers)
    for waiting in [made.submit(started.wait) for _ in range(workers)]:
        waiting.result()
    # A thread that starts later takes over the last number set, by whichever thread.
    torch.set_num_threads(threads)
    return made


def _limit(threads: int) -> None:
    torch.set_flush_denormal(True)  # as `onp.numerics.strict_float32` does in its thread
    torch.set_num_threads(threads)
    torch.get_num_threads()  # a thread's first look at the number takes over the last one set, so it looks now
