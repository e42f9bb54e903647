"""What the policy knows about each unit from the start: first-order effects, activations, weights, position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onp.errors import InputError
from onp.evaluator import Batch, TriggeredBatch
from onp.slope import share_taken, thin
from onp.unit_statistics import (
    bn_divergence,
    effect,
    entropy,
    l1,
    lipschitz,
    moments,
    position,
    run_pass,
    saliency_gap,
    selectivity,
)
from onp.units import Layer
from onp.victim import Victim

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
    """

    values: Tensor
    names: tuple[str, ...]
    attack: Tensor
    cost: Tensor
    carrier: Tensor

    @property
    def taylor(self) -> Tensor:
        """float32 [V]; above 0 where pruning the unit alone should take more of the attack than it costs accuracy."""
        return _worth(self.attack, self.cost)

    @property
    def density(self) -> Tensor:
        """float32 [V], at least 0: remembered attack that goes with the unit for each bit of accuracy that does."""
        return self.carrier / (self.cost.clamp_min(0) + LEAST_COST)

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
    memory: float32 [V], `onp.memory.Memory.of_units`; None where nothing is remembered.
    Cost: one forward and one backward pass over at most `max_images` clean and as many triggered images in all.
    Raises InputError when weights and batches do not match.
    """
    if len(weights) != len(triggered) or min(weights, default=0.0) < 0 or (triggered and sum(weights) <= 0):
        raise InputError(f"{len(triggered)} triggered sets need as many weights >= 0, not all 0, not {list(weights)}.")
    used = [(batch, weight / sum(weights)) for batch, weight in zip(triggered, weights, strict=True) if weight > 0]
    images, labels = thin(clean.images, clean.labels, max_images)
    hits = []
    for batch, weight in used:
        aimed = batch.labels != batch.target
        hits.append((weight, *thin(batch.images[aimed], batch.target[aimed], max_images // len(used))))

    base = run_pass(victim, images, labels)
    attack, change_mean, change_peak = torch.zeros(victim.units), torch.zeros(victim.units), torch.zeros(victim.units)
    for weight, x, y in hits:
        hit = run_pass(victim, x, y)
        attack += weight * share_taken(hit.margin, hit.gradient)
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
    return NodeFeatures(torch.stack(list(columns.values()), 1), tuple(columns), attack, cost, carrier)


def _worth(attack: Tensor, cost: Tensor) -> Tensor:
    return attack - COST_WEIGHT * cost


def _cost(margin: Tensor, gradient: Tensor) -> Tensor:
    """Soft accuracy lost; each image is followed on its own, since a mean gradient would hide the few that flip."""
    return (torch.sigmoid(margin)[:, None] - torch.sigmoid(margin[:, None] - gradient)).mean(0)


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


