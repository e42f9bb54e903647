"""The training loop: many masks from one state, group-relative advantages, a PPO clip, and the best mask committed.

Written straight down like CleanRL's ppo.py (https://github.com/vwxyzjn/cleanrl). The start state is fixed, transitions
are deterministic and the return depends on the final mask alone, so that masks sampled from one state are each other's
baseline (group-relative advantages, https://arxiv.org/abs/2402.03300) and no critic is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from onp.errors import InputError
from onp.search.course import Course, Diagnostics, FoundMask, Progress
from onp.search.env import layer_blocks
from onp.search.features import ACTIVATION_MOMENTS, NodeFeatures, Saliency
from onp.search.neuron_graph import RELATIONS
from onp.search.policy import Action, Policy
from onp.search.problem import SearchProblem
from onp.search.single_toggles import Patience, Toggles, toggle_single_units

# Phi lost by masks of many changes, and by one of a single change, beyond which advantages make no difference.
ADVANTAGE_CLIP, ADVANTAGE_CLIP_SINGLE = 1.0, 0.2
LEAST_GAIN = 1e-4  # Phi: a pass that gains no more counts as one without gain


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is given."""

    relations: tuple[str, ...] = RELATIONS  #: edges of the neuron graph; () for none
    features: tuple[str, ...] | None = None  #: node features; None for all
    taylor_prior: bool = True  #: whether Taylor saliency enters the logits directly
    per_layer: bool = False  #: one policy, and one block, for each layer


@dataclass(frozen=True)
class PpoConfig:
    """How a policy is improved on one group of masks (https://arxiv.org/abs/1707.06347)."""

    learning_rate: float = 3e-3
    epochs: int = 4
    clip: float = 0.2
    entropy: tuple[float, float] = (0.01, 0.001)  #: weight of the bonus at the start and the end of the budget
    max_grad_norm: float = 0.5


@dataclass(frozen=True)
class AgentConfig:
    """How the agent searches; `PAPER` is the setting nearest to what is known of the paper."""

    seed: int = 0
    max_evaluations: int = 400  #: masks scored in all, the unpruned network's included; never exceeded
    samples: int = 16  #: masks scored per state
    candidates: int = 4  #: masks sampled for each one scored; half are picked by first-order prediction, 1 turns it off
    warm_start_masks: int = 16  #: of two orders of the units, score-to-cost ratio and Taylor saliency, before the first pass
    single_toggles: float = 1.0  #: share of the evaluations for toggles of single units, after passes with the others
    blocks: int = 3  #: blocks of layers a pass visits, unless `policy.per_layer`
    patience: int = 3  #: passes, then groups of single toggles, without gain before the search stops
    least_gain: float = 3e-3  #: Phi that a group of single toggles must gain; one of 300 images counts as much, and is chance
    policy: PolicyConfig = PolicyConfig()
    ppo: PpoConfig = PpoConfig()


#: ONP as far as it is known (arXiv 2405.17746): an agent and a graph per layer, PPO, features of the activations only.
PAPER = AgentConfig(
    candidates=1,
    warm_start_masks=0,
    single_toggles=0.0,
    policy=PolicyConfig(relations=("similar",), features=ACTIVATION_MOMENTS, taylor_prior=False, per_layer=True),
    ppo=PpoConfig(learning_rate=1e-3),
)


def build_policies(problem: SearchProblem, config: AgentConfig) -> tuple[Policy, ...]:
    """The agents: one for all blocks, or one per layer where `config.policy.per_layer`; seeded by `config.seed`."""
    generator = torch.Generator().manual_seed(config.seed)
    wanted, features = config.policy, problem.features
    seen = features if wanted.features is None else features.select(wanted.features)
    score = features.taylor if wanted.taylor_prior else None
    count = len(problem.env.victim.layers) if wanted.per_layer else 1
    return tuple(Policy(problem.graph, seen, generator, score) for _ in range(count))


def train(
    problem: SearchProblem,
    policies: Sequence[Policy],
    config: AgentConfig = AgentConfig(),
    progress: Progress | None = None,
) -> FoundMask:
    """Train `policies` (in place) within the budget; the environment ends in the best mask found.

    Args:
        problem: environment and features.
        policies: of `build_policies`.
        config: how to search.
        progress: called with every step.

    Raises:
        InputError: a budget without an evaluation, a group without a comparison, or single toggles by several agents.
    """
    if config.max_evaluations < 1 or config.samples < 2:
        raise InputError("The agent needs at least 1 evaluation and 2 samples per state.")
    if config.policy.per_layer and config.single_toggles:
        raise InputError("Single toggles are made by one agent for all layers; give single_toggles=0 with per_layer.")
    env, features, saliency = problem.env, problem.features, problem.saliency
    blocks = layer_blocks(env.victim, len(env.victim.layers) if config.policy.per_layer else config.blocks)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.Adam(nn.ModuleList(policies).parameters(), config.ppo.learning_rate, eps=1e-5)
    search = Course(env, config.max_evaluations, progress)
    reserve = int(config.single_toggles * config.max_evaluations)

    if config.warm_start_masks:
        search.warm_start(features, config.warm_start_masks)

    without_gain, number, measured_at = 0, 0, torch.ones_like(env.keep)
    while without_gain < config.patience and search.budget.left() > reserve:
        number += 1
        before = float(env.outcome.phi)
        for index, block in enumerate(blocks):
            # Measure: first-order effects hold near the mask they were measured at.
            if config.policy.taylor_prior and not torch.equal(measured_at, env.keep):
                features, measured_at = features.at(env.keep, saliency), env.keep
                for policy in policies:
                    policy.set_prior(features.taylor)

            # Sample: new masks only, since a known one costs nothing and teaches nothing new.
            policy, keep, summary = policies[index % len(policies)], env.keep, env.summary(index / len(blocks))
            candidates = policy.sample(keep, summary, block, config.samples * config.candidates, generator)
            masks = keep ^ candidates.toggle
            rows = _screen(masks, env.new(masks), features, config.samples, generator)
            rows = rows[: max(0, search.budget.left() - reserve)]
            if not len(rows):
                continue

            # Score: the current mask competes too, as the action of changing nothing, at the mean offset.
            masks = torch.cat((masks[rows], keep[None]))
            toggle = torch.cat((candidates.toggle[rows], torch.zeros_like(keep)[None]))
            action = Action(toggle, torch.cat((candidates.offset[rows], candidates.offset[-1:])))
            advantage = _advantage(env.evaluate(masks).phi - env.outcome.phi, ADVANTAGE_CLIP)

            # Improve the policy, then commit the best of the group if it beats the current mask.
            log_prob = partial(policy.log_prob, keep, summary, block, action)
            diagnostics = _improve(policy, optimizer, log_prob, advantage, (config.ppo, search.share_spent))
            search.commit_best(masks, f"pass {number}", index, diagnostics)
        without_gain = 0 if float(env.outcome.phi) > before + LEAST_GAIN else without_gain + 1

    if config.single_toggles:
        _toggle_single_units(search, policies[0], optimizer, config, (features, saliency, generator))
    return search.found()


def _screen(masks: Tensor, new: Tensor, features: NodeFeatures, count: int, generator: torch.Generator) -> Tensor:
    """Rows of at most `count` of the new masks: the policy's mode, half by first-order prediction, the rest as sampled.

    The prediction never replaces the policy's own samples: they keep the search going where first-order scores are wrong.
    """
    rows = new.nonzero()[:, 0]
    if len(rows) <= count:
        return rows
    pruned = (~masks[rows]).float()
    # More attack than there is cannot be removed, whatever the scores add up to.
    predicted = (pruned @ features.attack_attribution).clamp_max(1.0) - pruned @ features.acc_attribution
    best = rows[predicted.topk(count // 2).indices]
    mode = rows[rows == len(masks) - 1]
    rest = rows[torch.randperm(len(rows), generator=generator)]
    order = torch.cat((mode, best, rest)).tolist()
    return torch.tensor(list(dict.fromkeys(order))[:count])


def _advantage(gain: Tensor, clip: float) -> Tensor:
    """Of masks against each other, [K]; without `clip` one ruinous mask would hide all other differences."""
    gain = gain.clamp_min(-clip)
    return (gain - gain.mean()) / (gain.std() + 1e-6)


def _improve(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    log_prob: Callable[[], tuple[Tensor, Tensor]],
    advantage: Tensor,
    at: tuple[PpoConfig, float],
) -> Diagnostics:
    """A few epochs of clipped policy gradient on one group; `at`: how, and the share of the budget that is spent."""
    config, share = at
    bonus = config.entropy[0] + share * (config.entropy[1] - config.entropy[0])
    with torch.no_grad():
        old, _ = log_prob()
    for _ in range(config.epochs):
        new, entropy = log_prob()
        logratio = new - old
        # Bounded before the exponential: the log-probability sums over hundreds of units.
        ratio = logratio.clamp(-20, 20).exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).mean() - bonus * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
    with torch.no_grad():
        approx_kl = float((ratio - 1 - logratio).mean())
        return Diagnostics(float(entropy), approx_kl, float(((ratio - 1).abs() > config.clip).float().mean()))


def _toggle_single_units(
    search: Course,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: AgentConfig,
    measured: tuple[NodeFeatures, Saliency, torch.Generator],
) -> None:
    """Single units that the policy proposes; it learns of what each gains."""
    features, saliency, generator = measured
    measured_at: Tensor | None = None

    def summary() -> Tensor:
        return search.env.summary(search.share_spent)

    def pick(keep: Tensor, allowed: Tensor, count: int) -> Tensor:
        nonlocal measured_at
        if config.policy.taylor_prior and (measured_at is None or not torch.equal(measured_at, keep)):
            policy.set_prior(features.at(keep, saliency).taylor)
            measured_at = keep
        return policy.sample_toggles(keep, summary(), allowed, count, generator)

    def learn(toggles: Toggles) -> Diagnostics:
        log_prob = partial(policy.toggle_log_prob, toggles.keep, summary(), toggles.allowed, toggles.units)
        advantage = _advantage(toggles.gain, ADVANTAGE_CLIP_SINGLE)
        return _improve(policy, optimizer, log_prob, advantage, (config.ppo, search.share_spent))

    patience = Patience(config.samples, config.patience, config.least_gain)
    toggle_single_units(search, patience, pick, learn)
