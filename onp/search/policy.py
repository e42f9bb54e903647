"""The policy: a small graph network that gives, for the committed mask, the probability of toggling each unit next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.search.features import NodeFeatures
from onp.search.message_passing.layers import SAGEConv
from onp.search.neuron_graph import NeuronGraph
from onp.search.prior import RESTORE_LOGIT, normalised, pick_units, usual_logit

GLOBALS = 4  # accuracy, surrogate ASR, share pruned, progress of the pass
OFFSET_STD = 0.5  # of the sampled logit offset of a layer: how many units to prune, beside which
HIDDEN = 32  # features of a node
ROUNDS = 2  # of message passing


@dataclass(frozen=True, eq=False)
class Action:
    """K samples for one block of units. Everything on the CPU.

    toggle: bool [K, V], the units that are pruned or brought back, False outside the block
    offset: float32 [K, L], sampled logit offset per layer
    """

    toggle: Tensor
    offset: Tensor


class Policy(nn.Module):
    """Message passing over the neuron graph, then the logit per unit that it is toggled, and a logit offset per layer.

    Before any training a unit is pruned with a small probability (about 8 units in all, at most 1 %), or near 1/2 and
    above where its Taylor saliency is among the highest, and a pruned one is brought back with 1/5: an untrained policy
    proposes good masks, mostly small changes.

    Two kinds of action follow from the same logits: `sample` decides every unit of a block at once, `sample_toggles` picks
    single units.

    Args:
        graph: the neuron graph.
        features: node features.
        generator: of the initial weights.
        score: float32 [V], the Taylor saliency that enters the logit directly; None for a constant prior.
    """

    units: Tensor
    static: Tensor
    prior_score: Tensor

    def __init__(
        self,
        graph: NeuronGraph,
        features: NodeFeatures,
        generator: torch.Generator,
        score: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.layers = int(graph.layer.max()) + 1
        prior = usual_logit(graph.nodes)
        self.register_buffer("static", features.values)
        self.register_buffer("prior_score", torch.zeros(graph.nodes) if score is None else normalised(score))
        self.register_buffer("units", torch.bincount(graph.layer).float()[:, None])
        self.embed = nn.Linear(features.values.shape[1], HIDDEN)
        self.convs = nn.ModuleList(SAGEConv(HIDDEN, HIDDEN, aggr="sum") for _ in range(ROUNDS))
        self.unit_head = nn.Sequential(nn.Linear(HIDDEN + 2 + GLOBALS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1))
        self.layer_head = nn.Linear(HIDDEN + 1 + GLOBALS, 1)
        self.bias = nn.Parameter(torch.tensor(prior))
        self.prior_scale = nn.Parameter(torch.tensor(-prior))
        self.restore = nn.Parameter(torch.tensor(RESTORE_LOGIT))
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        convs = [module for module in self.modules() if isinstance(module, SAGEConv)]
        # Own features, then neighbours': the order in which the generator's numbers are used.
        linears = [self.embed, *(conv.lin_r for conv in convs), *(conv.lin_l for conv in convs)]
        linears += [module for module in (*self.unit_head, self.layer_head) if isinstance(module, nn.Linear)]
        for linear in linears:
            nn.init.orthogonal_(linear.weight, generator=generator)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        # Heads near 0: the prior decides until rewards change it.
        for head in (self.unit_head[2], self.layer_head):
            nn.init.normal_(head.weight, std=0.01, generator=generator)  # type: ignore[arg-type]

    def forward(self, keep: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """keep bool [V], the committed mask; summary float32 [4]. Returns toggling logits [V] and layer offsets [L]."""
        h = self.embed(self.static)
        for conv in self.convs:
            h = h + F.silu(conv(self.graph.csr, h, self.graph.weight))
        h = F.layer_norm(h, h.shape[1:])
        gate = keep.float()[:, None]
        everywhere = summary.expand(len(h), -1)
        logits = self.unit_head(torch.cat((h, gate, self.graph.gather(gate), everywhere), 1))[:, 0]
        logits = logits + torch.where(keep, self.bias + self.prior_scale * self.prior_score, self.restore - self.prior_score)
        pooled = torch.zeros(self.layers, h.shape[1] + 1).index_add(0, self.graph.layer, torch.cat((h, gate), 1))
        pooled = pooled / self.units
        offset = self.layer_head(torch.cat((pooled, summary.expand(self.layers, -1)), 1))[:, 0]
        return logits, offset

    def set_prior(self, score: Tensor) -> None:
        """Replace the Taylor saliency, float32 [V], by one measured at another mask."""
        self.prior_score.copy_(normalised(score))

    def sample(self, keep: Tensor, summary: Tensor, block: Tensor, count: int, generator: torch.Generator) -> Action:
        """`count` actions for the units of `block`, bool [V]; the last one is the likelier decision per unit."""
        with torch.no_grad():
            logits, centre = self(keep, summary)
            noise = torch.randn((count, self.layers), generator=generator)
            noise[-1] = 0
            offset = centre + OFFSET_STD * noise
            chance = torch.sigmoid(logits + offset[:, self.graph.layer])
            threshold = torch.rand(chance.shape, generator=generator)
            threshold[-1] = 0.5
            return Action((chance > threshold) & block, offset)

    def log_prob(self, keep: Tensor, summary: Tensor, block: Tensor, action: Action) -> tuple[Tensor, Tensor]:
        """Log-probability [K] of the samples and the mean entropy [] of the units' decisions, differentiable."""
        logits, centre = self(keep, summary)
        logits = (logits + action.offset[:, self.graph.layer])[:, block]
        chosen = -F.binary_cross_entropy_with_logits(logits, action.toggle[:, block].float(), reduction="none").sum(1)
        touched = torch.zeros(self.layers, dtype=torch.bool).index_fill(0, self.graph.layer[block].unique(), True)
        deviation = ((action.offset - centre) / OFFSET_STD)[:, touched]
        chance = torch.sigmoid(logits)
        entropy = (F.softplus(logits) - chance * logits).mean()
        # The Normal's constant is left out: it is the same for every sample and cancels in every ratio.
        return chosen - deviation.square().sum(1) / 2, entropy

    def sample_toggles(self, keep: Tensor, summary: Tensor, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """At most `count` different units of `allowed`, bool [V], to be toggled one at a time, int64 [B]: half of them
        the likeliest, the rest sampled one after the other, each in proportion to its probability.
        """
        with torch.no_grad():
            return pick_units(self(keep, summary)[0], allowed, count, generator)

    def toggle_log_prob(self, keep: Tensor, summary: Tensor, allowed: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability [B] of picking each of `units` first, and the entropy [] of that pick, differentiable; the entropy as
        a share of the largest there is.
        """
        logits = self(keep, summary)[0].masked_fill(~allowed, -torch.inf)
        chosen = logits.log_softmax(0)
        inside = chosen[allowed]
        return chosen[units], -(inside.exp() * inside).sum() / math.log(max(2, len(inside)))
