import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from onp.engine.evaluator import Evaluator
from onp.errors import InputError
from onp.search.env import COUNTED, LOST_PER_NAT, Objective, PruneEnv


def env_of(b, **options) -> PruneEnv:
    return PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), (1.0,), **options)


def test_gymnasium_accepts_the_environment(backdoored):
    check_env(env_of(backdoored, blocks=3), skip_render_check=True)


def test_rewards_add_up_to_the_change_of_the_potential(backdoored):
    env = env_of(backdoored, blocks=3, passes=2)
    _, start = env.reset()
    generator = np.random.default_rng(0)
    total, done, steps = 0.0, False, 0
    while not done:
        action = (generator.random(env.action_space.n) < 0.05).astype(np.int8)
        observation, reward, done, truncated, info = env.step(action)
        assert env.observation_space.contains(observation) and not truncated
        total += reward
        steps += 1
    assert steps == 6
    assert total == pytest.approx(info["phi"] - start["phi"], abs=1e-6)
    assert info["phi"] == pytest.approx(float(env.evaluate(env.keep[None]).phi))


def test_a_later_pass_brings_units_back(backdoored):
    env = env_of(backdoored, blocks=1, passes=2)
    action = np.zeros(env.action_space.n, dtype=np.int8)
    action[:4] = 1
    env.step(action)
    assert int((~env.keep).sum()) == 4
    env.step(np.zeros_like(action))
    assert env.keep.all()


def test_blocks_partition_the_units_in_order(backdoored):
    for blocks in (1, 2, 3, 8):
        parts = env_of(backdoored, blocks=blocks).blocks
        assert len(parts) == min(blocks, len(backdoored.victim.layers))
        assert (torch.stack(parts).sum(0) == 1).all()
        starts = [int(part.nonzero()[0]) for part in parts]
        assert starts == sorted(starts)


def test_phi_follows_its_formula(backdoored):
    b = backdoored
    objective = Objective(max_acc_drop=0.02, accuracy=1.5, beyond=5.0, budget=0.0005, penalty=3.0, size=0.1)
    env = env_of(b, objective=objective)
    masks = torch.rand(6, b.victim.units, generator=torch.Generator().manual_seed(2)) > 0.04
    masks[0] = True
    scores = Evaluator(b.victim, b.score, b.score_triggered).score(masks)
    drop = LOST_PER_NAT * (scores.divergence - scores.divergence[0])
    asr = (scores.asr[:, 0] + scores.asr_soft[:, 0]) / 2
    lost = scores.acc[0] - scores.acc
    excess = (lost - 0.02).clamp_min(0) / 0.02
    assert (drop > 0.0005).any() and (drop < 0.0005).any()
    spent = 1.5 * drop.clamp_min(0) + 5 * (drop - 0.0005).clamp_min(0)
    expected = -asr - spent - 3 * excess - 0.1 * (~masks).double().mean(1)
    found = env.evaluate(masks)
    torch.testing.assert_close(found.phi, expected.float())
    probability = scores.acc_soft[0] - scores.acc_soft
    cost = lost / 2 + drop.clamp_min(0) / 4 + probability / 4
    torch.testing.assert_close(found.cost, cost.float())
    allowed = (lost <= 0.02) & (cost <= 0.0005)
    assert torch.equal(found.acceptable, allowed) and allowed.any() and not allowed.all()


def test_the_price_is_the_budget_at_which_a_mask_would_be_acceptable(backdoored):
    masks = torch.rand(40, backdoored.victim.units, generator=torch.Generator().manual_seed(3)) > 0.1
    env = env_of(backdoored)
    found = env.evaluate(masks)
    limit = float(found.asr.median())
    price = env.price(limit)
    for share, any_acceptable in ((price + 1e-6, True), (price - 1e-6, False)):
        allowed = env_of(backdoored, objective=Objective(max_acc_drop=COUNTED * share, budget=share)).evaluate(masks)
        assert bool((allowed.acceptable & (allowed.asr <= limit)).any()) is any_acceptable
    assert price >= 0 and env.price(-1.0) is None


def test_known_masks_cost_nothing(backdoored):
    env = env_of(backdoored)
    assert env.evaluations == 1
    masks = torch.rand(5, backdoored.victim.units, generator=torch.Generator().manual_seed(4)) > 0.1
    masks[3] = masks[1]
    masks[4] = True
    assert env.fresh(masks).tolist() == [True, True, True, False, False]
    first = env.evaluate(masks)
    assert env.evaluations == 4
    assert torch.equal(env.evaluate(masks).phi, first.phi) and first.phi[1] == first.phi[3]
    assert env.evaluations == 4 == env.evaluator.evaluations


def test_commit_changes_no_score(backdoored):
    masks = torch.rand(4, backdoored.victim.units, generator=torch.Generator().manual_seed(6)) > 0.05
    fresh = env_of(backdoored).evaluate(masks).phi
    env = env_of(backdoored)
    env.commit(masks[0] | (torch.arange(backdoored.victim.units) > 20))
    torch.testing.assert_close(env.evaluate(masks).phi, fresh, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (0.0,), (-1.0,), (1.0, 1.0)])
def test_weights_must_match_the_families(backdoored, weights):
    b = backdoored
    with pytest.raises(InputError, match="weights"):
        PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), weights)


def test_carriers_left_lower_the_potential_by_their_share(backdoored):
    carriers = torch.zeros(backdoored.victim.units)
    carriers[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    masks = torch.ones(3, backdoored.victim.units, dtype=torch.bool)
    masks[1, 0] = masks[2, 1:3] = False
    plain, pressed = env_of(backdoored), env_of(backdoored, carriers=carriers)
    difference = plain.evaluate(masks).phi - pressed.evaluate(masks).phi
    expected = Objective().remembered * torch.tensor([1.0, 0.6, 0.5])
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)
