"""Inversions side by side."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from onp.detect.config import DetectRun
from onp.detect.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 5], ids=lambda threads: f"{threads} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_keep_their_order_and_progress_its_thread(threads):
    seen, caller = [], threading.get_ident()

    def progress(steps: int = 1, *, known: bool = False) -> None:
        assert threading.get_ident() == caller
        seen.append((steps, known))

    def task(number: int):
        def run(given: DetectRun) -> tuple[int, int, int]:
            time.sleep(0.02 * (3 - number))  # the first ends last
            for _ in range(number):
                given.progress()
            given.progress(10, known=True)
            value = torch.ones(2, requires_grad=True)
            (gradient,) = torch.autograd.grad((value * number).sum(), value)
            return int(gradient[0]), given.seed, given.values_at_once

        return run

    run = DetectRun(seed=7, progress=progress, values_at_once=1000)
    results = side_by_side([task(number) for number in range(4)], run, CPU)
    assert [result[:2] for result in results] == [(number, 7) for number in range(4)]
    assert {result[2] for result in results} == {1000 // min(threads, 4)}
    assert sorted(seen) == [(1, False)] * 6 + [(10, True)] * 4
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_ends_the_other_tasks(threads, error):
    ended = threading.Event()

    def endless(run: DetectRun) -> None:
        try:
            while True:
                time.sleep(0.001)
                run.progress()
        finally:
            ended.set()

    def fails(run: DetectRun) -> None:
        run.progress(5)
        if error is ZeroDivisionError:
            raise error

    def progress(steps: int = 1, *, known: bool = False) -> None:
        if steps == 5 and error is KeyboardInterrupt:  # as where the caller is interrupted
            raise error

    with pytest.raises(error):
        side_by_side([endless, fails], replace(DetectRun(), progress=progress), CPU)
    assert ended.is_set(), "nothing goes on in the background"


def test_one_task_has_all_threads(threads):
    assert side_by_side([lambda run: torch.get_num_threads()], DetectRun(), CPU) == [threads]
    assert side_by_side([], DetectRun(), CPU) == []
