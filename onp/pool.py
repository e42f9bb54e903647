"""Independent tasks one after the other, side by side in processes, or on a Ray cluster, with the same results."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from onp.errors import InputError, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3  # of a task whose worker died


class WorkerDied(RuntimeError):
    """The process of a task ended before the task did, each time that it was tried."""


@dataclass(frozen=True)
class Workers:
    """Who runs the tasks."""

    ray: str | None = None  #: None: this machine; "auto": the cluster of this machine, started where none runs; else an address
    threads: int = 1  #: CPUs that a task takes of a cluster; the task itself keeps to as many threads
    gpu_share: float = 1.0  #: what a task takes of a GPU, where a cluster has GPUs, and of its memory, in processes too
    processes: int = 0  #: without Ray: how many; 0: this process, where a task that crashes takes the others with it
    retries: int = RETRIES  #: of a task whose worker died


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The ray module, connected to a cluster; disconnected afterwards where it was not connected before.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed; run pip install '.[ray]', or leave --ray out.") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address != "auto":
            raise InputError(f"There is no Ray cluster at {address}; start one there, or use --ray auto.") from error
        try:
            ray.init(include_dashboard=False, **options)
        except Exception as error:  # on a machine too busy to start it in time, say
            raise InputError(f"A Ray cluster could not be started here ({first_line(error)}); try again.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_all(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers = Workers(),
    connect: Callable[[str], AbstractContextManager[Any]] = connected,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run a task on every item; a failed one does not stop the others.

    Args:
        task: importable by other processes. One whose worker is killed starts again, `workers.retries` times at most.
        items: what it is called with.
        workers: who runs it.
        connect: from an address, the ray module in a context in which it is connected.

    Yields:
        Each item with its result, or with the exception that its task raised, as they are done: `WorkerDied` where its worker
        died whenever it was tried.

    Raises:
        InputError: Ray is asked for and cannot be used.
    """
    if not items:
        return
    if workers.ray is not None:
        with connect(workers.ray) as cluster:
            yield from _on_cluster(cluster, task, items, workers)
    elif workers.processes:
        yield from _in_processes(task, items, workers)
    else:
        for item in items:
            yield item, _outcome(task, item)


def _outcome(task: Callable[[Item], Result], item: Item) -> Result | Exception:
    try:
        return task(item)
    except Exception as error:
        return error


def _on_cluster(
    cluster: Any, task: Callable[[Item], Result], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[Item, Result | Exception]]:
    # A worker that asks for no GPU sees none.
    share = workers.gpu_share if cluster.cluster_resources().get("GPU", 0) else 0.0
    options = {"num_cpus": max(1, workers.threads), "num_gpus": share, "max_retries": workers.retries}
    remote = cluster.remote(_within_share).options(**options)
    waiting = {remote.remote(share, task, item): item for item in items}
    while waiting:
        (done,), _ = cluster.wait(list(waiting), num_returns=1)
        result: Result | Exception
        try:
            result = cluster.get(done)
        except cluster.exceptions.RayTaskError as error:
            result = error.cause if isinstance(error.cause, Exception) else error
        except cluster.exceptions.RayError as error:
            result = WorkerDied(f"Its process ended before it did ({type(error).__name__})")
        yield waiting.pop(done), result


def _within_share(share: float, task: Callable[[Item], Result], item: Item) -> Result:
    """`task(item)` in a process that takes no more than `share` of a GPU's memory."""
    if 0 < share < 1:
        import torch  # here, since not every task needs it

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(share)
    return task(item)


@dataclass(eq=False)
class _Worker(Generic[Item]):
    """A process, this end of the pipe to it, and what it works on."""

    process: BaseProcess
    pipe: Connection
    item: Item
    attempt: int  # counted from 0


def _in_processes(
    task: Callable[[Item], Result], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[Item, Result | Exception]]:
    """One process for each of `workers.processes` items at a time; each takes the next item when it is done with one.

    `concurrent.futures` gives up all tasks when one of its processes dies; here only the task of that process is tried again.
    """
    waiting = deque((item, 0) for item in items)
    busy: list[_Worker[Item]] = []
    idle: list[tuple[BaseProcess, Connection]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers.processes:
                process, pipe = idle.pop() if idle else _start(task, workers)
                item, attempt = waiting.popleft()
                with contextlib.suppress(OSError):  # of a process that has just died, which is seen below
                    pipe.send(item)
                busy.append(_Worker(process, pipe, item, attempt))
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                busy.remove(worker)
                try:
                    result = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    worker.pipe.close()
                    if worker.attempt < workers.retries:
                        waiting.append((worker.item, worker.attempt + 1))
                    else:
                        yield worker.item, WorkerDied(f"Its process ended before it did ({_ending(worker.process.exitcode)})")
                    continue
                except Exception as error:  # of an exception that pickle does not read back
                    result = RuntimeError(first_line(error))
                idle.append((worker.process, worker.pipe))
                yield worker.item, result
    finally:
        for process, pipe in [*idle, *((worker.process, worker.pipe) for worker in busy)]:
            process.terminate()
            process.join()
            pipe.close()


def _start(task: Callable[[Item], Result], workers: Workers) -> tuple[BaseProcess, Connection]:
    """A fresh process that waits for items, and this end of the pipe to it.

    Spawned: a fork of a process that has used threads or a GPU does not work.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, task, workers), daemon=True)
    process.start()
    there.close()  # so that its end closes with the process
    return process, here


def _work(pipe: Connection, task: Callable[[Item], Result], workers: Workers) -> None:
    """What a worker process does until its parent ends or stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            item = pipe.recv()
            result = _outcome(partial(_within_share, workers.gpu_share, task), item)
            try:
                pipe.send(result)
            except (EOFError, OSError):
                raise
            except Exception as error:  # a result or an exception that cannot be pickled
                pipe.send(RuntimeError(first_line(result if isinstance(result, Exception) else error)))


def _ending(code: int | None) -> str:
    """In words, how a process ended: "SIGKILL", "exit code 3"."""
    with contextlib.suppress(ValueError):
        if code is not None and code < 0:
            return signal.Signals(-code).name
    return f"exit code {code}"
