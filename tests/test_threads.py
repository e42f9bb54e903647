"""Threads that share the cores."""

import threading

import pytest
import torch

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch
from onp.engine.settings import EvaluatorSettings
from onp.model.archs import build_network
from onp.model.victim import victim_from_module
from onp.numerics import strict_float32
from onp.threads import pool, run_all


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_keep_their_order_and_the_threads_their_numbers(workers):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        weight = torch.ones(2, requires_grad=True)

        def task(item: int) -> tuple[int, int, bool, str]:
            return item, torch.get_num_threads(), (weight * item).requires_grad, threading.current_thread().name

        results = run_all(task, range(7), workers)
        assert [result[0] for result in results] == list(range(7))
        assert {result[1] for result in results} == {3 // workers}
        assert not any(result[2] for result in results), "no gradients"
        assert torch.get_num_threads() == 3 and (weight * 1).requires_grad
        own = threading.current_thread().name
        assert all((result[3] == own) == (workers == 1) for result in results)
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [3], "a thread that starts later gets the caller's number"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_task_is_raised(workers):
    with pytest.raises(ZeroDivisionError):
        run_all(lambda item: 1 // (item - 2), range(4), workers)


def test_masks_that_change_few_steps_start_no_threads_of_their_own():
    """Each number of workers keeps a pool for good."""

    def pools() -> set[str]:
        return {thread.name.rpartition("_")[0] for thread in threading.enumerate() if thread.name.startswith("onp-")}

    before, threads = pools(), torch.get_num_threads()
    victim = victim_from_module(build_network("preact_resnet18:width=4"), Normalisation.parse("none"), (3, 16, 16))
    clean = Batch(torch.randn(14, 3, 16, 16), torch.zeros(14, dtype=torch.int64))
    torch.set_num_threads(7)
    try:
        evaluator = Evaluator(victim, clean, [], settings=EvaluatorSettings(backend="torch", precision="float32"))
        evaluator.score(torch.rand(30, victim.units) > torch.rand(30, 1) ** 4)
        assert pools() - before == {"onp-7"}
    finally:
        torch.set_num_threads(threads)


def test_subnormal_numbers_count_as_zero_while_a_run_lasts():
    def smallest() -> float:
        return float(torch.tensor(1e-40) * 1.0)

    assert smallest() > 0
    with strict_float32():
        with strict_float32():
            assert smallest() == 0
        assert smallest() == 0
        assert {each.result() for each in [pool(2).submit(smallest) for _ in range(8)]} == {0.0}
    assert smallest() > 0
