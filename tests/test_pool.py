"""Tasks one after the other, in processes, and on a Ray cluster."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.pool_tasks import double, doubled_in
from helpers.small_tables import table_config

from onp.compare import compare
from onp.compare.cell import Cell, run_cell
from onp.compare.datasets import Datasets
from onp.compare.victims import planned_trainings
from onp.pool import WorkerDied, Workers, run_all


def _dies_once(item):
    """Kills its own worker the first time."""
    marker, cell = item
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(cell)


class _Cluster:
    """As much of Ray as `run_all` needs, in this process, with one GPU."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=KeyError)

    def __init__(self):
        self.options = []

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": 1.0}

    def remote(self, task):
        def options(**given):
            self.options.append(given)
            return SimpleNamespace(remote=task)

        return SimpleNamespace(options=options)

    def wait(self, waiting, num_returns):
        return waiting[:1], waiting[1:]

    def get(self, done):
        return done


def test_a_cell_takes_its_share_of_a_gpu(monkeypatch):
    cluster, limits = _Cluster(), []

    def connect(address):
        return contextlib.nullcontext(cluster)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    assert dict(run_all(double, [1, 2], Workers("auto", 3, gpu_share=0.25), connect)) == {1: 2, 2: 4}
    assert cluster.options == [{"num_cpus": 3, "num_gpus": 0.25, "max_retries": 3}] and limits == [0.25, 0.25]
    assert dict(run_all(double, [1], Workers("auto"), connect)) == {1: 2} and limits == [0.25, 0.25], "a whole GPU has no limit"


def test_tasks_fail_alone():
    found = dict(run_all(double, [1, 3, 2]))
    assert found[1] == 2 and found[2] == 4 and isinstance(found[3], ValueError)


def test_a_process_that_dies_takes_no_other_task_with_it(tmp_path):
    items = [(tmp_path / "died", number) for number in (1, 5, 6, 3, 7, 8, 9, 4)]
    found = {item[1]: result for item, result in run_all(doubled_in, items, Workers(processes=2, retries=1))}
    assert [found[number][1] for number in (1, 5, 4)] == [2, 10, 8], "5 is tried again"
    assert os.getpid() not in {found[1][0], found[5][0], found[4][0]}
    assert isinstance(found[6], WorkerDied) and "SIGKILL" in str(found[6])
    assert isinstance(found[7], WorkerDied) and "exit code 3" in str(found[7])
    assert isinstance(found[3], ValueError) and str(found[3]) == "three"
    assert isinstance(found[8], RuntimeError) and isinstance(found[9], RuntimeError), "pickle takes neither"


def test_processes_end_with_the_loop_that_uses_them(tmp_path):
    running = run_all(doubled_in, [(tmp_path, number) for number in range(4)], Workers(processes=1))
    process = next(running)[1][0]
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_cluster_gives_the_same_and_survives_a_killed_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work the workers would hardly run
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # tasks of the tests are found from there
    ray = pytest.importorskip("ray")
    config = table_config(tmp_path)
    rows = compare(config)
    victims = {row["victim"]: row for row in rows}
    trainings = planned_trainings(config, Datasets(config, Path(config.out)))
    cells = [Cell(training.files, "ft", 0, "default", 0.05, 1500, 1) for training in trainings]
    assert len(cells) == len(victims) == 2
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        found = {
            item[1].victim.name: got
            for item, got in run_all(_dies_once, [(tmp_path / "died", c) for c in cells], Workers("auto"))
        }
        failed = dict(run_all(double, [3, 4], Workers("auto")))
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists(), found
    assert isinstance(failed[3], ValueError) and failed[4] == 8
    for row in rows:
        if row["defence"] == "ft":
            got = found[row["victim"]]
            assert {key: value for key, value in got.items() if key != "seconds"} == {
                key: row[key] for key in got if key != "seconds"
            }
