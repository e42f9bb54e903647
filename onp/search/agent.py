"""The training loop: many masks from one state, group-relative advantages, a PPO clip, and the best mask committed.

Written straight down like CleanRL's ppo.py (https://github.com/vwxyzjn/cleanrl). The start state is fixed, transitions
are deterministic and the return depends on the final mask alone, so that masks drawn from one state are each other's
baseline (group-relative advantages, https://arxiv.org/abs/2402.03300) and no critic is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from onp.errors import InputError
from onp.search.env import Outcomes, PruneEnv
from onp.search.features import ACTIVATION_MOMENTS, NodeFeatures
from onp.search.neuron_graph import RELATIONS, NeuronGraph
from onp.search.policy import Action, Policy
from onp.search.ranking import prefix_masks

RUIN, RUIN_ALONE = 1.0, 0.2  # Phi lost by masks of many changes, and of one, beyond which more makes no difference


@dataclass(frozen=True)
class AgentConfig:
    """How the agent searches; `PAPER` is the preset nearest to what is known of the paper."""

    seed: int = 0
    max_evaluations: int = 400  #: masks scored in all, the unpruned network's included; never exceeded
    draws: int = 16  #: masks scored per state
    screening: int = 4  #: masks drawn for each one scored; half are picked by first-order prediction, 1 turns it off
    prefixes: int = 16  #: of two orders of the units, first-order worth and carriers, scored before the first pass
    flips: float = 1.0  #: share of the evaluations for single flips, after passes over the blocks with the others
    per_layer: bool = False  #: one agent a layer instead of one for all blocks
    blocks: int = 3  #: blocks of layers a pass visits, unless `per_layer`
    relations: tuple[str, ...] = RELATIONS  #: edges of the graph; () for a policy that sees no neighbours
    features: tuple[str, ...] | None = None  #: node features; None for all
    first_order: bool = True  #: whether the first-order score enters the policy's logit directly
    learning_rate: float = 3e-3
    epochs: int = 4
    clip: float = 0.2
    entropy: tuple[float, float] = (0.01, 0.001)  #: weight of the bonus at the start and the end of the budget
    max_grad_norm: float = 0.5
    patience: int = 3  #: passes, then groups of flips, without gain before the search stops


#: ONP as far as it is known (arXiv 2405.17746): an agent and a graph per layer, PPO, features of the activations only.
PAPER = AgentConfig(
    screening=1,
    prefixes=0,
    flips=0.0,
    per_layer=True,
    relations=("similar",),
    features=ACTIVATION_MOMENTS,
    first_order=False,
    learning_rate=1e-3,
)


@dataclass(frozen=True)
class Update:
    """One step of the search: what was tried from a state and what came of it."""

    stage: str  #: "prefixes", "pass 1", ..., "flips"
    block: int  #: -1 for the whole network
    evaluations: int  #: so far
    phi: float  #: of the committed mask, afterwards
    asr: float
    drop: float  #: accuracy expected to be lost
    pruned: int
    entropy: float
    approx_kl: float  #: http://joschu.net/blog/kl-approx.html
    clip_fraction: float


@dataclass(frozen=True, eq=False)
class TrainResult:
    """keep: bool [V], the best acceptable mask, all True when nothing was found; `outcome` its scores (B = 1)."""

    keep: Tensor
    outcome: Outcomes
    history: tuple[Update, ...]
    evaluations: int


def build_policies(graph: NeuronGraph, features: NodeFeatures, env: PruneEnv, config: AgentConfig) -> tuple[Policy, ...]:
    """The agents: one for all blocks, or one per block where `config.per_layer`; seeded by `config.seed`."""
    generator = torch.Generator().manual_seed(config.seed)
    seen = features if config.features is None else features.select(config.features)
    score = features.taylor if config.first_order else None
    count = len(env.blocks) if config.per_layer else 1
    return tuple(Policy(graph, seen, generator, score=score) for _ in range(count))


def train(
    env: PruneEnv,
    policies: Sequence[Policy],
    features: NodeFeatures,
    config: AgentConfig | None = None,
    progress: Callable[[Update], None] | None = None,
) -> TrainResult:
    """Train `policies` (in place) in `env` within the budget; the env ends in the best mask found.

    progress: called with every update.
    Raises InputError for a budget without an evaluation, a group without a comparison, or single flips by several agents.
    """
    config = config or AgentConfig()
    if config.max_evaluations < 1 or config.draws < 2:
        raise InputError("The agent needs at least 1 evaluation and 2 draws per state.")
    if config.per_layer and config.flips:
        raise InputError("Single flips are made by one agent for all layers; give flips=0 with per_layer.")
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.Adam(nn.ModuleList(policies).parameters(), config.learning_rate, eps=1e-5)
    env.reset()
    search = _Search(env, config, progress)
    reserve = int(config.flips * config.max_evaluations)

    if config.prefixes:
        orders = (features.density, features.taylor)
        search.choose(torch.cat([prefix_masks(order, config.prefixes) for order in orders])[: search.left], "prefixes")

    flat, number, measured = 0, 0, torch.ones_like(env.keep)
    while flat < config.patience and search.left > reserve:
        number += 1
        before = float(env.outcome.phi)
        for index, block in enumerate(env.blocks):
            # Look: first-order effects hold near the mask they were measured at.
            if config.first_order and not torch.equal(measured, env.keep):
                features, measured = features.at(env.keep), env.keep
                for one in policies:
                    one.hinted(features.taylor)

            # Draw: unseen masks only, since a known one costs nothing and teaches nothing new.
            policy, keep, summary = policies[index % len(policies)], env.keep, env.summary(index / len(env.blocks))
            drawn = policy.draw(keep, summary, block, config.draws * config.screening, generator)
            masks = keep ^ drawn.flip
            picked = _screen(masks, env.fresh(masks), features, config.draws, generator)
            picked = picked[: max(0, search.left - reserve)]
            if not len(picked):
                continue

            # Score: the current mask competes too, as the action of changing nothing, at the mean offset.
            masks = torch.cat((masks[picked], keep[None]))
            flip = torch.cat((drawn.flip[picked], torch.zeros_like(keep)[None]))
            action = Action(flip, torch.cat((drawn.offset[picked], drawn.offset[-1:])))
            advantage = _advantage(env.evaluate(masks).phi - env.outcome.phi, RUIN)

            # Improve the policy, then commit the best of the group if it beats the current mask.
            diagnostics = _improve(policy, optimizer, partial(policy.log_prob, keep, summary, block, action), advantage, search)
            search.choose(masks, f"pass {number}", index, diagnostics)
        flat = 0 if float(env.outcome.phi) > before + 1e-4 else flat + 1

    if config.flips:
        _flip(search, policies[0], optimizer, features, generator)
    return TrainResult(env.keep, env.outcome, tuple(search.history), search.evaluations)


def _screen(masks: Tensor, fresh: Tensor, features: NodeFeatures, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the fresh masks: the policy's mode, half by first-order prediction, the rest as drawn.

    The prediction never replaces the policy's own draws: they keep the search going where first-order scores are wrong.
    """
    rows = fresh.nonzero()[:, 0]
    if len(rows) <= count:
        return rows
    pruned = (~masks[rows]).float()
    # More attack than there is cannot be removed, whatever the scores add up to.
    predicted = (pruned @ features.attack).clamp_max(1.0) - pruned @ features.cost
    best = rows[predicted.topk(count // 2).indices]
    mode = rows[rows == len(masks) - 1]
    rest = rows[torch.randperm(len(rows), generator=generator)]
    order = torch.cat((mode, best, rest)).tolist()
    return torch.tensor(list(dict.fromkeys(order))[:count])


def _advantage(gain: Tensor, ruin: float) -> Tensor:
    """Of masks against each other, [K]; what loses more than `ruin` would drown all other differences."""
    gain = gain.clamp_min(-ruin)
    return (gain - gain.mean()) / (gain.std() + 1e-6)


def _improve(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    log_prob: Callable[[], tuple[Tensor, Tensor]],
    advantage: Tensor,
    search: _Search,
) -> tuple[float, float, float]:
    """A few epochs of clipped policy gradient on one group; returns entropy, approximate KL and clipped fraction."""
    config, share = search.config, search.evaluations / search.config.max_evaluations
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
        return float(entropy), approx_kl, float(((ratio - 1).abs() > config.clip).float().mean())


def _flip(
    search: _Search, policy: Policy, optimizer: torch.optim.Optimizer, features: NodeFeatures, generator: torch.Generator
) -> None:
    """Single units pruned or brought back, each scored alone, so that the policy learns of each; then the best ones together.

    Where nothing is gained, others are tried; `patience` such groups in a row end it.
    """
    env, config = search.env, search.config
    flat, tried = 0, torch.zeros_like(env.keep)
    while search.left >= 2 and flat < config.patience:
        if config.first_order and flat == 0:
            policy.hinted(features.at(env.keep).taylor)
        # A third of what is left stays for the flips together.
        count = max(2, min(config.draws, search.left * 2 // 3))
        keep, summary, allowed = env.keep, env.summary(search.evaluations / config.max_evaluations), ~tried
        units = policy.draw_flips(keep, summary, allowed, count, generator)
        flips = torch.nn.functional.one_hot(units, len(keep)).bool()
        masks = search.affordable(keep ^ flips)
        units = units[: len(masks)]
        if len(units) < 2:
            return
        before = env.outcome.phi
        gain = env.evaluate(masks).phi - before
        log_prob = partial(policy.flip_log_prob, keep, summary, allowed, units)
        diagnostics = _improve(policy, optimizer, log_prob, _advantage(gain, RUIN_ALONE), search)

        # Flips that do nothing alone count too: of units that do one job together, none does.
        useful = flips[: len(masks)][gain.argsort(descending=True)]
        sizes = [2**power for power in range(len(useful).bit_length())]
        search.choose(torch.stack([keep ^ useful[:size].any(0) for size in sizes]), "flips", -1, diagnostics)
        gained = bool(env.outcome.phi > before)
        flat = 0 if gained else flat + 1
        tried = torch.zeros_like(tried) if gained else tried.index_fill(0, units, True)


class _Search:
    """The budget, the history, and the rule for what is committed."""

    def __init__(self, env: PruneEnv, config: AgentConfig, progress: Callable[[Update], None] | None) -> None:
        self.env, self.config, self.history = env, config, list[Update]()
        self._first, self._progress = env.evaluations - 1, progress

    @property
    def evaluations(self) -> int:
        return self.env.evaluations - self._first

    @property
    def left(self) -> int:
        return self.config.max_evaluations - self.evaluations

    def affordable(self, masks: Tensor) -> Tensor:
        """The masks that are known already, and as many others as the budget pays for."""
        fresh = self.env.fresh(masks)
        return masks[~fresh | (fresh.cumsum(0) <= self.left)]

    def choose(
        self, masks: Tensor, stage: str, block: int = -1, diagnostics: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> None:
        """Commit the best acceptable mask if it beats the current one, and write down what happened."""
        masks = self.affordable(masks)
        if len(masks):
            outcomes = self.env.evaluate(masks)
            chance = torch.where(outcomes.acceptable, outcomes.phi, -torch.inf)
            if chance.max() > self.env.outcome.phi:
                self.env.commit(masks[chance.argmax()])
        state = self.env.outcome
        phi, asr, drop = float(state.phi), float(state.asr), float(state.drop)
        pruned = int((~self.env.keep).sum())
        self.history.append(Update(stage, block, self.evaluations, phi, asr, drop, pruned, *diagnostics))
        if self._progress:
            self._progress(self.history[-1])
