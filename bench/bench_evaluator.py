"""A quick look at masks per second (the full table: bench/evaluator.py): Evaluator.score against its peers.

Every row's counts are compared with those of the hooked network before it is timed; every round scores fresh masks.
ONP_BENCH_CASE chooses the network (default "small"; see bench/cases.py).
"""

import os

import pytest
import torch
from cases import case, full_masks, late_masks
from evaluator import agree
from evaluator_baselines import Compiled, Folded, Hooks, Ours

from onp.engine.plan import plan_of

CASE = os.environ.get("ONP_BENCH_CASE", "small")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WORKLOADS = {"full": (full_masks, 2), "late": (late_masks, 4)}
SCORERS = {
    "hooks": Hooks,
    "folded-float32": lambda case: Folded(case, torch.float32),
    "folded-bfloat16": lambda case: Folded(case, torch.bfloat16),
    "compiled": lambda case: Compiled(case, torch.float32),
    "ours-torch": lambda case: Ours(case, backend="torch"),
    "ours": Ours,
}


@pytest.fixture(scope="module", params=DEVICES)
def setting(request):
    chosen = case(CASE, request.param)
    return chosen, Hooks(chosen)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_score(benchmark, setting, workload, scorer):
    chosen, hooks = setting
    draw, count = WORKLOADS[workload]
    candidate = SCORERS[scorer](chosen)
    agree(chosen, hooks, [candidate], draw(chosen.victim, 1))
    benchmark.pedantic(candidate.score, setup=lambda: ((draw(chosen.victim, count),), {}), rounds=3, warmup_rounds=1)
    where = f"{chosen.name} on {chosen.victim.device.type}"
    benchmark.group = f"evaluator {workload}: {count} masks, {chosen.images} images, {where}"
    flops = sum(plan_of(chosen.victim).cost) * chosen.images * count
    benchmark.extra_info |= {
        "masks_per_second": count / benchmark.stats.stats.median,
        "gflops_without_reuse": flops / benchmark.stats.stats.median / 1e9,
    }
