import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from onp.engine.evaluator import Evaluator
from onp.search.env import PruneEnv
from onp.search.gym_env import GymPruneEnv


def env_of(b, blocks: int) -> GymPruneEnv:
    return GymPruneEnv(PruneEnv(b.victim, Evaluator(b.victim, b.score, b.score_triggered), (1.0,)), blocks)


def test_gymnasium_accepts_the_environment(backdoored):
    check_env(env_of(backdoored, 3), skip_render_check=True)


def test_rewards_add_up_to_the_change_of_the_potential(backdoored):
    env = env_of(backdoored, 3)
    _, start = env.reset()
    generator = np.random.default_rng(0)
    total, done, steps = 0.0, False, 0
    while not done:
        action = (generator.random(env.action_space.n) < 0.05).astype(np.int8)
        observation, reward, done, truncated, info = env.step(action)
        assert env.observation_space.contains(observation) and not truncated
        total += reward
        steps += 1
    assert steps == 3
    assert total == pytest.approx(info["phi"] - start["phi"], abs=1e-6)
    assert info["phi"] == pytest.approx(float(env.env.evaluate(env.env.keep[None]).phi))


def test_an_episode_starts_from_the_unpruned_network(backdoored):
    env = env_of(backdoored, 1)
    action = np.zeros(env.action_space.n, dtype=np.int8)
    action[:4] = 1
    env.step(action)
    assert int((~env.env.keep).sum()) == 4
    env.reset()
    assert env.env.keep.all()
