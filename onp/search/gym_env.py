"""`PruneEnv` as a gymnasium environment, for agents from elsewhere; nothing else in this package uses it.

A step decides the units of one block of layers, first block to last; an episode is one pass over the blocks.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from onp.search.env import PruneEnv, layer_blocks


class GymPruneEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Prune block by block; deterministic, every episode starts from the unpruned network.

    Action: MultiBinary [largest block], 1 = prune that unit of the current block, 0 = keep it or bring it back; entries beyond
    the block are ignored. Observation: `keep` MultiBinary [V]; `summary` Box [4], all within [0, 1]: ACC, surrogate ASR, share
    pruned, progress of the episode; `block` Discrete, the block to decide next. Reward: the difference of Phi, so that the
    return of an episode is Phi at its end minus Phi at its start.

    Args:
        env: scores the masks.
        blocks: how many blocks of consecutive layers there are, at most one a layer.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium declares it as an instance variable)

    def __init__(self, env: PruneEnv, blocks: int = 8) -> None:
        self.env, self.blocks, self.steps = env, layer_blocks(env.victim, blocks), 0
        self.action_space = spaces.MultiBinary(max(int(block.sum()) for block in self.blocks))
        self.observation_space = spaces.Dict(
            {
                "keep": spaces.MultiBinary(env.victim.units),
                "summary": spaces.Box(0.0, 1.0, (4,), np.float32),
                "block": spaces.Discrete(len(self.blocks)),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.env.reset()
        return self._observation(), {"phi": float(self.env.outcome.phi)}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        block = self.blocks[self.steps]
        keep = self.env.keep.clone()
        keep[block] = torch.from_numpy(np.asarray(action)[: int(block.sum())] == 0)
        before = float(self.env.outcome.phi)
        self.env.commit(keep)
        self.steps += 1
        info = {"phi": float(self.env.outcome.phi), "acceptable": bool(self.env.outcome.acceptable)}
        return self._observation(), info["phi"] - before, self.steps >= len(self.blocks), False, info

    def _observation(self) -> dict[str, Any]:
        return {
            "keep": self.env.keep.numpy().astype(np.int8),
            "summary": self.env.summary(self.steps / len(self.blocks)).numpy(),
            "block": np.int64(self.steps % len(self.blocks)),
        }
