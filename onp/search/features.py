"""What the policy knows about each unit from the start: first-order effects, activations, weights, position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.evaluator import Batch, TriggeredBatch
from onp.errors import InputError
from onp.model.interpret import gated_forward
from onp.model.layers import Layer
from onp.model.victim import Victim
from onp.search.unit_statistics import (
    bn_divergence,
    chunks,
    effect,
    entropy,
    l1,
    lipschitz,
    margin_of,
    moments,
    position,
    run_pass,
    saliency_gap,
    selectivity,
)

#: The node features of the paper as far as it is known: the distribution of a filter's activations on clean images.
ACTIVATION_MOMENTS = ("act_mean", "act_std", "act_skew", "act_zero", "act_max")
# A backdoored network may lose 1 point of accuracy for 100 points of ASR; scores must not trade them one to one.
COST_WEIGHT = 10.0
LEAST_COST = 0.002  # soft accuracy; a first-order cost below it is as good as none


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """One row per unit, on the CPU.

    values: float32 [V, F], each column of the order of 1; names: F column names
    attack: float32 [V], the share of the attack expected to go with the unit, weighted over families; at most 1
    cost: float32 [V], the soft accuracy expected to be lost with the unit
    carrier: float32 [V], at least 0, summing to 1 or all 0: the unit's share in the attack that the norms remember, that is
        `attack` times the remembered shift where both are above 0; each alone also marks units that clean images need
    measure: attack and cost of every unit given that only `keep`, bool [V], is left; a forward and a backward pass
    """

    values: Tensor
    names: tuple[str, ...]
    attack: Tensor
    cost: Tensor
    carrier: Tensor
    measure: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def taylor(self) -> Tensor:
        """float32 [V]; above 0 where pruning the unit alone should take more of the attack than it costs accuracy."""
        return _worth(self.attack, self.cost)

    @property
    def density(self) -> Tensor:
        """float32 [V], at least 0: remembered attack that goes with the unit for each bit of accuracy that does."""
        return self.carrier / (self.cost.clamp_min(0) + LEAST_COST)

    def at(self, keep: Tensor) -> NodeFeatures:
        """The same features with `attack` and `cost` measured anew in the network pruned to `keep`, bool [V].

        First-order effects of units that do one job together are far from additive: once one is gone, others matter.
        """
        attack, cost = self.measure(keep)
        return replace(self, attack=attack, cost=cost)

    def column(self, name: str) -> Tensor:
        return self.values[:, self.names.index(name)]

    def select(self, names: Sequence[str]) -> NodeFeatures:
        """Only these columns, in this order. Raises InputError for an unknown name."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(f"There is no node feature '{missing[0]}'; choose from {', '.join(self.names)}.")
        columns = [self.names.index(name) for name in names]
        return replace(self, values=self.values[:, columns], names=tuple(names))


def features(
    victim: Victim,
    clean: Batch,
    triggered: Sequence[TriggeredBatch],
    weights: Sequence[float],
    max_images: int = 128,
    memory: Tensor | None = None,
) -> NodeFeatures:
    """Node features from images the defence may see (the build split and surrogate triggers).

    weights: evidence of each triggered batch, at least 0, not all 0 when there are batches.
    memory: float32 [V], `onp.detect.bn_statistics.Memory.of_units`; None where nothing is remembered.
    Cost: one forward and one backward pass over at most `max_images` clean and as many triggered images in all.
    Raises InputError when weights and batches do not match.
    """
    if len(weights) != len(triggered) or min(weights, default=0.0) < 0 or (triggered and sum(weights) <= 0):
        raise InputError(f"{len(triggered)} triggered sets need as many weights >= 0, not all 0, not {list(weights)}.")
    used = [(batch, weight / sum(weights)) for batch, weight in zip(triggered, weights, strict=True) if weight > 0]
    images, labels = _thin(clean.images, clean.labels, max_images)
    hits = []
    for batch, weight in used:
        aimed = batch.labels != batch.target
        hits.append((weight, *_thin(batch.images[aimed], batch.target[aimed], max_images // len(used))))

    def measure(keep: Tensor) -> tuple[Tensor, Tensor]:
        attacks = [(weight, *_gradients(victim, x, y, keep)) for weight, x, y in hits]
        return _attack(attacks, victim.units), _cost(*_gradients(victim, images, labels, keep))

    base = run_pass(victim, images, labels)
    attack, change_mean, change_peak = torch.zeros(victim.units), torch.zeros(victim.units), torch.zeros(victim.units)
    for weight, x, y in hits:
        hit = run_pass(victim, x, y)
        attack += _attack([(weight, hit.margin, hit.gradient)], victim.units)
        change_mean += weight * effect(hit.mean, base.mean)
        change_peak += weight * effect(hit.peak, base.peak)
    cost = _cost(base.margin, base.gradient)
    memory = torch.zeros(victim.units) if memory is None else memory
    carrier = memory.clamp_min(0) * attack.clamp_min(0)
    carrier = carrier / carrier.sum().clamp_min(1e-12)
    columns = {
        "taylor": _scaled(_worth(attack, cost)),
        "attack": _scaled(attack),
        "cost": _scaled(cost),
        "carrier": (carrier * victim.units).clamp_max(25).sqrt(),
        **{
            name: _in_layer(victim.layers, raw)
            for name, raw in {
                "attack_z": attack,
                "cost_z": cost,
                "change_mean": change_mean,
                "change_peak": change_peak,
                "memory": memory,
                "bn_divergence": bn_divergence(victim, base),
                "lipschitz": lipschitz(victim),
                "l1": l1(victim),
                "saliency_gap": saliency_gap(victim, base),
                "entropy": entropy(base.mean),
                "selectivity": selectivity(base.mean, labels),
                **moments(base),
            }.items()
        },
        **position(victim),
    }
    return NodeFeatures(torch.stack(list(columns.values()), 1), tuple(columns), attack, cost, carrier, measure)


def _worth(attack: Tensor, cost: Tensor) -> Tensor:
    return attack - COST_WEIGHT * cost


def _attack(hits: Sequence[tuple[float, Tensor, Tensor]], units: int) -> Tensor:
    """From (weight, margin [N], gradient [N, V]) per family: the share of sum log(1 + exp margin) a unit takes.

    That sum falls with the margin where a trigger works, however well, and ignores images where it fails already.
    """
    total = torch.zeros(units)
    for weight, margin, gradient in hits:
        strength = F.softplus(margin)
        lost = strength[:, None] - F.softplus(margin[:, None] - gradient)
        total += weight * lost.mean(0) / strength.mean().clamp_min(1e-6)
    return total


def _cost(margin: Tensor, gradient: Tensor) -> Tensor:
    """Soft accuracy lost; each image is followed on its own, since a mean gradient would hide the few that flip."""
    return (torch.sigmoid(margin)[:, None] - torch.sigmoid(margin[:, None] - gradient)).mean(0)


def _gradients(victim: Victim, images: Tensor, labels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The label's margin [N] in the network pruned to `keep`, and its gradient [N, V] by the gates, on the CPU."""
    parts = []
    for x, y in chunks(images, labels):
        gates = keep.to(x).expand(len(x), -1).clone().requires_grad_()
        margin = margin_of(gated_forward(victim, x, gates), y)
        (gradient,) = torch.autograd.grad(margin.sum(), gates)
        parts.append((margin.detach().cpu(), gradient.cpu()))
    margins, gradients = zip(*parts, strict=True)
    return torch.cat(margins), torch.cat(gradients)


def _thin(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` images, evenly spread so that sorted sets keep all their classes."""
    if len(images) <= count:
        return images, labels
    picked = torch.linspace(0, len(images) - 1, max(count, 1)).round().long().to(images.device)
    return images[picked], labels[picked]


def _scaled(raw: Tensor) -> Tensor:
    """Signed logarithm on a scale common to all layers, so that a few heavy units do not flatten the rest."""
    return torch.sign(raw) * torch.log1p(raw.abs() / raw.abs().median().clamp_min(1e-8)) / 3


def _in_layer(layers: Sequence[Layer], raw: Tensor) -> Tensor:
    """Robust z-score within each layer, clipped to +-5."""
    out = torch.zeros_like(raw)
    for layer in layers:
        part = raw[layer.offset : layer.offset + layer.units]
        centred = part - part.median()
        spread = 1.4826 * centred.abs().median()
        # More than half of the units equal: fall back to the standard deviation, 0 where all are equal.
        spread = spread if spread > 1e-12 else centred.square().mean().sqrt()
        out[layer.offset : layer.offset + layer.units] = (centred / spread.clamp_min(1e-12)).clamp(-5, 5)
    return out
