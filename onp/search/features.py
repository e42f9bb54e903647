"""What the policy knows of each unit before the search: first-order effects, activations, weights, position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.scoring import Batch, TriggeredBatch
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
    shape_of_activation,
)

#: The node features of the paper as far as it is known: the distribution of a filter's activations on clean images.
ACTIVATION_MOMENTS = ("act_mean", "act_std", "act_skew", "act_zero", "act_max")
# A backdoored network may lose 1 point of ACC for 100 points of ASR; scores must not trade them one to one.
ACC_WEIGHT = 10.0
LEAST_COST = 0.002  # soft accuracy; a first-order loss below it counts as this much


@dataclass(frozen=True, eq=False)
class FeatureBatches:
    """The images that features are measured on; the defence may see them all (the build split and surrogate triggers).

    clean: with their labels
    attacks: of each trigger family that counts, the triggered images of other classes than the target
    weights: of those families, above 0, summing to 1
    """

    clean: Batch
    attacks: tuple[TriggeredBatch, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(
        cls, clean: Batch, attacks: Sequence[TriggeredBatch], weights: Sequence[float], max_images: int = 128
    ) -> FeatureBatches:
        """At most `max_images` clean images and as many triggered ones in all.

        Args:
            clean: clean images.
            attacks: triggered images, a batch a family.
            weights: one per family, at least 0, not all 0 where there are families.
            max_images: bounds the time of a forward and a backward pass.

        Raises:
            InputError: weights and batches do not match.
        """
        if len(weights) != len(attacks) or min(weights, default=0.0) < 0 or (attacks and sum(weights) <= 0):
            raise InputError(f"{len(attacks)} triggered sets need as many weights >= 0, not all 0, not {list(weights)}.")
        used = [(batch, weight / sum(weights)) for batch, weight in zip(attacks, weights, strict=True) if weight > 0]
        thinned = []
        for batch, _ in used:
            other = batch.labels != batch.target
            rows = _spread(int(other.sum()), max_images // len(used)).to(batch.images.device)
            images, labels, target = (part[other][rows] for part in (batch.images, batch.labels, batch.target))
            thinned.append(TriggeredBatch(batch.family, images, labels, target))
        rows = _spread(len(clean.images), max_images).to(clean.images.device)
        return cls(Batch(clean.images[rows], clean.labels[rows]), tuple(thinned), tuple(weight for _, weight in used))


@dataclass(frozen=True, eq=False)
class Saliency:
    """First-order effects of pruning single units of `victim`, measured on `batches`."""

    victim: Victim
    batches: FeatureBatches

    def at(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The effects in the network pruned to `keep`, bool `[V]`; a forward and a backward pass.

        Effects of units that do one job together are far from additive: once one is gone, others matter.

        Returns:
            Attack attribution and accuracy attribution, float32 `[V]`, as in `NodeFeatures`.
        """
        attacks = [
            (weight, *_gradients(self.victim, batch.images, batch.target, keep))
            for batch, weight in zip(self.batches.attacks, self.batches.weights, strict=True)
        ]
        clean = _gradients(self.victim, self.batches.clean.images, self.batches.clean.labels, keep)
        return _attack_attribution(attacks, self.victim.units), _acc_attribution(*clean)


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """One row per unit, on the CPU.

    values: float32 [V, F], each column of the order of 1; names: F column names
    attack_attribution: float32 [V], the share of the attack expected to go with the unit, weighted over families; at most 1
    acc_attribution: float32 [V], the soft accuracy expected to be lost with the unit
    backdoor_score: float32 [V], at least 0, summing to 1 or all 0: `attack_attribution` times the BN shift where both are above
        0. Either alone also marks units that clean images need; both together mark backdoor neurons
    """

    values: Tensor
    names: tuple[str, ...]
    attack_attribution: Tensor
    acc_attribution: Tensor
    backdoor_score: Tensor

    @property
    def taylor(self) -> Tensor:
        """Taylor saliency, float32 [V]: above 0 where pruning the unit alone should gain more than it costs."""
        return _taylor(self.attack_attribution, self.acc_attribution)

    @property
    def score_to_cost(self) -> Tensor:
        """Saliency-to-cost ratio, float32 [V], at least 0: backdoor score for each bit of accuracy that goes with the unit."""
        return self.backdoor_score / (self.acc_attribution.clamp_min(0) + LEAST_COST)

    def at(self, keep: Tensor, saliency: Saliency) -> NodeFeatures:
        """The same with both attributions measured anew in the network pruned to `keep`, bool `[V]`."""
        attack, acc = saliency.at(keep)
        return replace(self, attack_attribution=attack, acc_attribution=acc)

    def column(self, name: str) -> Tensor:
        """float32 [V]"""
        return self.values[:, self.names.index(name)]

    def select(self, names: Sequence[str]) -> NodeFeatures:
        """Only these columns, in this order.

        Raises:
            InputError: there is no column of such a name.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(f"There is no node feature '{missing[0]}'; choose from {', '.join(self.names)}.")
        columns = [self.names.index(name) for name in names]
        return replace(self, values=self.values[:, columns], names=tuple(names))


@dataclass(frozen=True, eq=False)
class Attributions:
    """First-order effects and the BN-statistics residual of each unit, float32 `[V]`, as in `NodeFeatures`."""

    attack: Tensor
    acc: Tensor
    bn_shift: Tensor


def node_features(victim: Victim, batches: FeatureBatches, bn_shift: Tensor | None = None) -> NodeFeatures:
    """Measure every feature; one forward and one backward pass over the images of `batches`.

    Args:
        victim: the unpruned network.
        batches: images and their weights.
        bn_shift: float32 `[V]`, the BN-statistics residual of each unit, `detect.bn_statistics`; None for 0.
    """
    clean = batches.clean
    base = run_pass(victim, clean.images, clean.labels)
    attack, change_mean, change_peak = torch.zeros(victim.units), torch.zeros(victim.units), torch.zeros(victim.units)
    for batch, weight in zip(batches.attacks, batches.weights, strict=True):
        hit = run_pass(victim, batch.images, batch.target)
        attack += _attack_attribution([(weight, hit.margin, hit.gradient)], victim.units)
        change_mean += weight * effect(hit.mean, base.mean)
        change_peak += weight * effect(hit.peak, base.peak)
    acc = _acc_attribution(base.margin, base.gradient)
    bn_shift = torch.zeros(victim.units) if bn_shift is None else bn_shift
    within_layers = {
        "change_mean": change_mean,
        "change_peak": change_peak,
        "bn_divergence": bn_divergence(victim, base),
        "lipschitz": lipschitz(victim),
        "l1": l1(victim),
        "saliency_gap": saliency_gap(victim, base),
        "entropy": entropy(base.mean),
        "selectivity": selectivity(base.mean, clean.labels),
        **moments(base),
        **shape_of_activation(base),
    }
    measured = {name: _in_layer(victim.layers, raw) for name, raw in within_layers.items()}
    return assembled_features(victim.layers, Attributions(attack, acc, bn_shift), measured)


def assembled_features(layers: Sequence[Layer], found: Attributions, measured: Mapping[str, Tensor]) -> NodeFeatures:
    """The node features from what was measured of each unit.

    Args:
        layers: of the network.
        found: attributions, from which several columns are made.
        measured: the other columns but those of the position, by name, float32 `[V]`, in the order in which they stand.
    """
    attack, acc = found.attack, found.acc
    score = found.bn_shift.clamp_min(0) * attack.clamp_min(0)
    score = score / score.sum().clamp_min(1e-12)
    columns = {
        "taylor": _scaled(_taylor(attack, acc)),
        "attack_attribution": _scaled(attack),
        "acc_attribution": _scaled(acc),
        "backdoor_score": (score * len(score)).clamp_max(25).sqrt(),
        "attack_attribution_z": _in_layer(layers, attack),
        "acc_attribution_z": _in_layer(layers, acc),
        "change_mean": measured["change_mean"],
        "change_peak": measured["change_peak"],
        "bn_shift": _in_layer(layers, found.bn_shift),
        **measured,
        **position(layers),
    }
    return NodeFeatures(torch.stack(list(columns.values()), 1), tuple(columns), attack, acc, score)


def _taylor(attack: Tensor, acc: Tensor) -> Tensor:
    """First-order saliency of a gate (Molchanov et al. 2017, https://arxiv.org/abs/1611.06440)."""
    return attack - ACC_WEIGHT * acc


def _attack_attribution(hits: Sequence[tuple[float, Tensor, Tensor]], units: int) -> Tensor:
    """From (weight, margin [N], gradient [N, V]) per family: the share of sum log(1 + exp margin) a unit takes.

    That sum falls with the margin where a trigger works, however well, and ignores images where it fails already.
    """
    total = torch.zeros(units)
    for weight, margin, gradient in hits:
        strength = F.softplus(margin)
        lost = strength[:, None] - F.softplus(margin[:, None] - gradient)
        total += weight * lost.mean(0) / strength.mean().clamp_min(1e-6)
    return total


def _acc_attribution(margin: Tensor, gradient: Tensor) -> Tensor:
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


def _spread(total: int, count: int) -> Tensor:
    """At most `count` of `total` rows, evenly spread so that sorted sets keep all their classes."""
    if total <= count:
        return torch.arange(total)
    return torch.linspace(0, total - 1, max(count, 1)).round().long()


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
