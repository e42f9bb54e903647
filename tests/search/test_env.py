import pytest
import torch

from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch
from onp.errors import InputError
from onp.search.env import Budget, PruneEnv, layer_blocks
from onp.search.objective import ACC_LOST_PER_COUNTED, ACC_LOST_PER_NAT, SELECTION, Objective


def env_of(b, objective: Objective = Objective(), backdoor_score=None) -> PruneEnv:
    return PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), (1.0,), objective, backdoor_score)


def random_masks(b, count: int, share: float, seed: int) -> torch.Tensor:
    """Masks that prune about `share` of the units."""
    return torch.rand(count, b.victim.units, generator=torch.Generator().manual_seed(seed)) > share


def test_blocks_partition_the_units_in_order(backdoored):
    for blocks in (1, 2, 3, 8):
        parts = layer_blocks(backdoored.victim, blocks)
        assert len(parts) == min(blocks, len(backdoored.victim.layers))
        assert (torch.stack(parts).sum(0) == 1).all()
        starts = [int(part.nonzero()[0]) for part in parts]
        assert starts == sorted(starts)
    with pytest.raises(InputError, match="at least one block"):
        layer_blocks(backdoored.victim, 0)


def test_phi_follows_its_formula(backdoored):
    b = backdoored
    objective = Objective(acc_budget=0.0005 * SELECTION, w_acc=1.5, w_over_budget=5.0, w_size=0.1)
    env = env_of(b, objective)
    masks = random_masks(b, 6, 0.04, 2)
    masks[0] = True
    scores = Evaluator(b.victim, b.score, b.score_triggered).score(masks)
    nats, counted = scores.divergence - scores.divergence[0], scores.acc[0] - scores.acc
    expected = (ACC_LOST_PER_COUNTED * counted + ACC_LOST_PER_NAT * nats).clamp_min(0)
    asr = (scores.asr[:, 0] + scores.asr_soft[:, 0]) / 2
    assert (expected > 0.0005).any() and (expected < 0.0005).any()
    spent = 1.5 * expected + 5 * (expected - 0.0005).clamp_min(0)
    phi = -asr - spent - 0.1 * (~masks).double().mean(1)
    outcomes = env.evaluate(masks)
    torch.testing.assert_close(outcomes.phi, phi.float())
    torch.testing.assert_close(outcomes.acc, scores.acc.float())
    allowed = expected <= 0.0005
    assert torch.equal(outcomes.acceptable, allowed) and allowed.any() and not allowed.all()


def test_augmented_images_that_become_wrong_cost_their_share_each_batch_alike(backdoored):
    b = backdoored
    augmented = [Batch(b.build.images[rows], b.build.labels[rows]) for rows in (slice(0, 60), slice(60, 70))]
    evaluator = Evaluator(b.victim, b.score, b.score_triggered, augmented)
    masks = random_masks(b, 5, 0.1, 5)
    plain = env_of(b).evaluate(masks).phi
    scores = evaluator.score(torch.cat((torch.ones_like(masks[:1]), masks)))
    agreement = ((scores.agreement + scores.agreement_soft) / 2).mean(1)
    loss = (agreement[0] - agreement[1:]).clamp_min(0)
    assert loss.max() > 0.01
    env = PruneEnv(b.victim, evaluator, (1.0,), Objective(w_target=2.0))
    torch.testing.assert_close(plain - env.evaluate(masks).phi, (2 * loss).float(), rtol=0, atol=1e-6)


def test_the_required_budget_is_that_at_which_a_mask_would_be_acceptable(backdoored):
    masks = random_masks(backdoored, 40, 0.1, 3)
    env = env_of(backdoored)
    limit = float(env.evaluate(masks).asr.median())
    required = env.required_budget(limit)
    for share, any_acceptable in ((required + 1e-6, True), (required - 1e-6, False)):
        allowed = env_of(backdoored, Objective().with_budget(share)).evaluate(masks)
        assert bool((allowed.acceptable & (allowed.asr <= limit)).any()) is any_acceptable
    assert required >= 0 and env.required_budget(-1.0) is None


def test_masks_scored_before_cost_nothing(backdoored):
    env = env_of(backdoored)
    assert env.evaluations == 1
    masks = random_masks(backdoored, 5, 0.1, 4)
    masks[3] = masks[1]
    masks[4] = True
    assert env.new(masks).tolist() == [True, True, True, False, False]
    first = env.evaluate(masks)
    assert env.evaluations == 4 and not env.new(masks).any()
    assert torch.equal(env.evaluate(masks).phi, first.phi) and first.phi[1] == first.phi[3]
    assert env.evaluations == 4 == env.evaluator.evaluations


def test_the_best_mask_is_acceptable_and_beats_the_committed_one(backdoored):
    env = env_of(backdoored, Objective().with_budget(0.05))
    masks = torch.cat((random_masks(backdoored, 30, 0.03, 1), random_masks(backdoored, 5, 0.6, 2)))
    outcomes = env.evaluate(masks)
    phi = torch.where(outcomes.acceptable, outcomes.phi, -torch.inf)
    assert phi.max() > env.outcome.phi and not outcomes.acceptable.all()
    best = env.best_of(masks)
    assert torch.equal(best, masks[phi.argmax()]) and env.keep.all(), "nothing is committed"
    env.commit(best)
    assert env.best_of(masks) is None and env.best_of(masks[:0]) is None


def test_a_budget_counts_the_unpruned_network_and_new_masks_only(backdoored):
    env = env_of(backdoored)
    budget = Budget(env, 4)
    masks = random_masks(backdoored, 5, 0.1, 4)
    masks[3] = masks[0]
    assert (budget.spent(), budget.left()) == (1, 3)
    env.evaluate(masks[:2])
    assert (budget.spent(), budget.left()) == (3, 1)
    assert torch.equal(budget.affordable(masks), masks[:4]), "one new mask, and those that were scored before"


def test_commit_changes_no_score(backdoored):
    masks = random_masks(backdoored, 4, 0.05, 6)
    fresh = env_of(backdoored).evaluate(masks).phi
    env = env_of(backdoored)
    env.commit(masks[0] | (torch.arange(backdoored.victim.units) > 20))
    torch.testing.assert_close(env.evaluate(masks).phi, fresh, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (0.0,), (-1.0,), (1.0, 1.0)])
def test_weights_must_match_the_families(backdoored, weights):
    b = backdoored
    with pytest.raises(InputError, match="weights"):
        PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), weights)


def test_backdoor_neurons_left_lower_the_potential_by_their_score(backdoored):
    score = torch.zeros(backdoored.victim.units)
    score[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    masks = torch.ones(3, backdoored.victim.units, dtype=torch.bool)
    masks[1, 0] = masks[2, 1:3] = False
    difference = env_of(backdoored).evaluate(masks).phi - env_of(backdoored, backdoor_score=score).evaluate(masks).phi
    expected = Objective().w_backdoor * torch.tensor([1.0, 0.6, 0.5])
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)


def test_another_objective_starts_over_with_all_that_is_known(backdoored):
    env = env_of(backdoored, Objective().with_budget(0.05))
    masks = random_masks(backdoored, 6, 0.1, 3)
    before = env.evaluate(masks)
    env.commit(masks[0])
    env.reset(Objective(w_size=3.0).with_budget(0.0))
    assert env.keep.all() and env.evaluations == 7 and not env.new(masks).any()
    after = env.evaluate(masks)
    torch.testing.assert_close(after.asr, before.asr)
    assert not torch.allclose(after.phi, before.phi) and not torch.equal(after.acceptable, before.acceptable)
