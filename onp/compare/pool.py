"""Independent tasks one after the other, or side by side on a Ray cluster, with the same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from onp.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3  # of a task whose worker died


@dataclass(frozen=True)
class Workers:
    """Who runs the tasks."""

    ray: str | None = None  #: None: this process; "auto": the cluster of this machine, started where none runs; else an address
    threads: int = 1  #: CPUs that a task takes of a cluster
    gpu_share: float = 1.0  #: what a task takes of a GPU and its memory, where a cluster has GPUs


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
        ray.init(include_dashboard=False, **options)
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
        task: importable by the workers of a cluster. One whose worker is killed starts again, `RETRIES` times at most.
        items: what it is called with.
        workers: who runs it.
        connect: from an address, the ray module in a context in which it is connected.

    Yields:
        Each item with its result, or with the exception that its task raised, as they are done.

    Raises:
        InputError: Ray is asked for and cannot be used.
    """
    if not items:
        return
    if workers.ray is None:
        for item in items:
            try:
                result: Result | Exception = task(item)
            except Exception as error:
                result = error
            yield item, result
        return
    with connect(workers.ray) as cluster:
        # A worker that asks for no GPU sees none.
        share = workers.gpu_share if cluster.cluster_resources().get("GPU", 0) else 0.0
        options = {"num_cpus": max(1, workers.threads), "num_gpus": share, "max_retries": RETRIES}
        remote = cluster.remote(_within_share).options(**options)
        waiting = {remote.remote(share, task, item): item for item in items}
        while waiting:
            (done,), _ = cluster.wait(list(waiting), num_returns=1)
            try:
                result = cluster.get(done)
            except cluster.exceptions.RayTaskError as error:
                result = error.cause if isinstance(error.cause, Exception) else error
            except cluster.exceptions.RayError as error:
                result = error
            yield waiting.pop(done), result


def _within_share(share: float, task: Callable[[Item], Result], item: Item) -> Result:
    """`task(item)` in a process that takes no more than `share` of a GPU's memory."""
    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
    return task(item)
