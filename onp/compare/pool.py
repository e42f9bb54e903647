"""Independent tasks one after the other, or side by side on a Ray cluster, with the same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from onp.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3  # of a task whose worker died


def run_all(
    task: Callable[[Item], Result], items: Sequence[Item], ray: str | None = None, threads: int = 1, gpu_share: float = 1.0
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yields every item with its result, or with the exception that its task raised, as they are done.

    ray: None runs them here in order; "auto" takes the cluster that runs on this machine or starts one; else its address.
    There each task takes `threads` CPUs and, where there are GPUs, `gpu_share` of one and its memory; one whose worker is
    killed starts again, `RETRIES` times at most.
    Raises InputError where Ray is asked for and cannot be used.
    """
    if not items:
        return
    if ray is None:
        for item in items:
            try:
                result: Result | Exception = task(item)
            except Exception as error:
                result = error
            yield item, result
        return
    with _cluster(ray) as cluster:
        # A worker that asks for no GPU sees none.
        share = gpu_share if cluster.cluster_resources().get("GPU", 0) else 0.0
        options = {"num_cpus": max(1, threads), "num_gpus": share, "max_retries": RETRIES}
        remote = cluster.remote(_within).options(**options)
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


def _within(share: float, task: Callable[[Item], Result], item: Item) -> Result:
    """`task(item)` in a process that takes no more than `share` of a GPU's memory."""
    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
    return task(item)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """The ray module, connected; disconnected afterwards where it was not connected before."""
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
