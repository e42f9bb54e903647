import pytest
import torch
from torch import Tensor

from onp.env import LOST_PER_NAT, VIEWS, Objective, PruneEnv
from onp.evaluator import Batch, Evaluator, TriggeredBatch
from onp.program import gated_forward
from onp.slope import slope


def rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack((a.argsort().argsort(), b.argsort().argsort())).float()
    return float(torch.corrcoef(ranks)[0, 1])


def pruned_env(b, units: Tensor, **options) -> PruneEnv:
    """An environment that judges copies too, with these units pruned."""
    own = TriggeredBatch(VIEWS[0], b.score.images.flip(3), torch.full_like(b.score.labels, -1), b.score.labels)
    env = PruneEnv(b.victim, Evaluator(b.victim, b.score, [*b.score_triggered, own]), (1.0,), Objective(**options))
    keep = torch.ones(b.victim.units, dtype=torch.bool)
    keep[units] = False
    env.commit(keep)
    return env


def test_slopes_rank_flips_by_what_they_gain(backdoored, known):
    b = backdoored
    env = pruned_env(b, torch.cat((known.taylor.topk(4).indices, known.cost.topk(4).indices)))
    expected = env.slope()
    gained = env.evaluate(env.keep ^ torch.eye(b.victim.units, dtype=torch.bool)).phi - env.outcome.phi
    assert rank_correlation(expected[env.keep], gained[env.keep]) > 0.5
    # Units that clean images need come back before units that bear the attack.
    worst, best = gained.masked_fill(env.keep, torch.inf).argmin(), gained.masked_fill(env.keep, -torch.inf).argmax()
    assert float(gained[best]) > 0 > float(gained[worst])
    assert float(expected[best]) > 0 > float(expected[worst])
    assert expected.isfinite().all() and expected.device.type == "cpu"


def test_no_mask_is_scored_for_slopes(backdoored, known):
    env = pruned_env(backdoored, known.taylor.topk(4).indices)
    before, keep = env.evaluations, env.keep.clone()
    env.slope()
    assert env.evaluations == before and torch.equal(env.keep, keep)


def test_size_and_memory_count_for_every_unit(backdoored, known):
    units = known.taylor.topk(4).indices
    plain, larger = (pruned_env(backdoored, units, size=size) for size in (0.0, 2.0))
    share = torch.where(plain.keep, -1.0, 1.0) / len(plain.keep)
    torch.testing.assert_close(larger.slope(), plain.slope() + 2 * share)


def test_accuracy_weighs_more_beyond_the_budget(backdoored, known):
    within, beyond = (pruned_env(backdoored, known.cost.topk(3).indices, budget=budget, changed=0.0) for budget in (1.0, 0.0))
    assert float(beyond.outcome.drop) > 0
    attack = slope(backdoored.victim, within.keep, within.evaluator.clean, 0.0, [(within.evaluator.triggered[0], 1.0)], [])
    size = torch.where(within.keep, -1.0, 1.0) / len(within.keep)
    accuracy = within.slope() - attack - size
    torch.testing.assert_close(beyond.slope() - attack - size, accuracy * 16 / 2, atol=1e-5, rtol=1e-3)


def test_clean_images_and_copies_against_finite_differences(backdoored):
    """Gates of kept units moved a little, in float64."""
    b = backdoored
    keep = torch.ones(b.victim.units, dtype=torch.bool)
    keep[::7] = False
    images, labels = b.score.images[:40], b.score.labels[:40]
    copy = TriggeredBatch("views", images.flip(3), torch.full_like(labels, -1), labels)
    found = slope(b.victim, keep, Batch(images, labels), LOST_PER_NAT, [], [(copy, 0.5)])

    def judged(gates: Tensor) -> float:
        with torch.no_grad():
            whole = gated_forward(b.victim, images.double(), torch.ones_like(gates))
            logits, moved = (gated_forward(b.victim, x.double(), gates) for x in (images, copy.images))
        divergence = (whole.softmax(1) * (whole.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
        return float(0.5 * moved.softmax(1).gather(1, labels[:, None]).mean() - LOST_PER_NAT * divergence)

    gates, step = keep.double(), 1e-4
    for unit in keep.nonzero()[::9, 0].tolist():
        lower = gates.clone()
        lower[unit] -= step
        assert float(found[unit]) == pytest.approx((judged(lower) - judged(gates)) / step, abs=2e-3, rel=0.05)
