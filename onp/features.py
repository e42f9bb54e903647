"""What the policy knows about each unit from the start: first-order effects, activations, weights, position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.errors import InputError
from onp.evaluator import Batch, TriggeredBatch
from onp.program import gated_forward
from onp.units import Layer
from onp.victim import Victim

#: The node features of the paper as far as it is known: the distribution of a filter's activations on clean images.
ACTIVATION_MOMENTS = ("act_mean", "act_std", "act_skew", "act_zero", "act_max")
POSITION = ("depth", "width", "group_size", "stage", "is_linear")
# A backdoored network may lose 1 point of accuracy for 100 points of ASR; scores must not trade them one to one.
COST_WEIGHT = 10.0
PIXELS_PER_CHUNK = 64 * 32 * 32  # keeps the activations of one backward pass within about 1 GB for a ResNet-18


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """One row per unit, on the CPU.

    values: float32 [V, F], each column of the order of 1; names: F column names
    attack: float32 [V], the share of the attack expected to go with the unit, weighted over families; at most 1
    cost: float32 [V], the soft accuracy expected to be lost with the unit
    measure: attack and cost of every unit given that only `keep`, bool [V], is left; a forward and a backward pass
    """

    values: Tensor
    names: tuple[str, ...]
    attack: Tensor
    cost: Tensor
    measure: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def taylor(self) -> Tensor:
        """float32 [V]; above 0 where pruning the unit alone should take more of the attack than it costs accuracy."""
        return _worth(self.attack, self.cost)

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


@dataclass(frozen=True, eq=False)
class _Pass:
    """Statistics of one set of images; N images, V units.

    margin [N] of the label's logit over the others together; gradient [N, V] of it by the gates
    mean, peak [N, V] over the pixels, after a ReLU; zero [V] share of zeros after it; m1, m2 [V] raw moments
    """

    margin: Tensor
    gradient: Tensor
    mean: Tensor
    peak: Tensor
    zero: Tensor
    m1: Tensor
    m2: Tensor


def features(
    victim: Victim,
    clean: Batch,
    triggered: Sequence[TriggeredBatch],
    weights: Sequence[float],
    max_images: int = 128,
) -> NodeFeatures:
    """Node features from images the defence may see (the build split and surrogate triggers).

    weights: evidence of each triggered batch, at least 0, not all 0 when there are batches.
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

    base = _run(victim, images, labels)
    attack, change_mean, change_peak = torch.zeros(victim.units), torch.zeros(victim.units), torch.zeros(victim.units)
    for weight, x, y in hits:
        hit = _run(victim, x, y)
        attack += _attack([(weight, hit.margin, hit.gradient)], victim.units)
        change_mean += weight * _effect(hit.mean, base.mean)
        change_peak += weight * _effect(hit.peak, base.peak)
    cost = _cost(base.margin, base.gradient)
    columns = {
        "taylor": _scaled(_worth(attack, cost)),
        "attack": _scaled(attack),
        "cost": _scaled(cost),
        **{
            name: _in_layer(victim.layers, raw)
            for name, raw in {
                "attack_z": attack,
                "cost_z": cost,
                "change_mean": change_mean,
                "change_peak": change_peak,
                "bn_divergence": _bn_divergence(victim, base),
                "lipschitz": _lipschitz(victim),
                "l1": _l1(victim),
                "saliency_gap": _saliency_gap(victim, base),
                "entropy": _entropy(base.mean),
                "selectivity": _selectivity(base.mean, labels),
                **_moments(base),
            }.items()
        },
        **_position(victim),
    }
    return NodeFeatures(torch.stack(list(columns.values()), 1), tuple(columns), attack, cost, measure)


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
    for x, y in _chunks(images, labels):
        gates = keep.to(x).expand(len(x), -1).clone().requires_grad_()
        margin = _margin(gated_forward(victim, x, gates), y)
        (gradient,) = torch.autograd.grad(margin.sum(), gates)
        parts.append((margin.detach().cpu(), gradient.cpu()))
    margins, gradients = zip(*parts, strict=True)
    return torch.cat(margins), torch.cat(gradients)


def _chunks(images: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    size = max(4, min(128, PIXELS_PER_CHUNK // math.prod(images.shape[2:])))
    return zip(images.split(size), labels.split(size), strict=True)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """log p / (1 - p) of the label, [N]."""
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -math.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(1)


def _thin(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` images, evenly spread so that sorted sets keep all their classes."""
    if len(images) <= count:
        return images, labels
    picked = torch.linspace(0, len(images) - 1, max(count, 1)).round().long().to(images.device)
    return images[picked], labels[picked]


def _run(victim: Victim, images: Tensor, labels: Tensor) -> _Pass:
    nodes = [layer.mask_nodes[-1] for layer in victim.layers] + [layer.node for layer in victim.layers]
    parts: list[tuple[Tensor, ...]] = []
    sums = torch.zeros(3, victim.units, dtype=torch.float64)
    for x, y in _chunks(images, labels):
        gates = torch.ones(len(x), victim.units, device=x.device, requires_grad=True)
        logits, values = gated_forward(victim, x, gates, outputs=tuple(dict.fromkeys(nodes)))
        margin = _margin(logits, y)
        (gradient,) = torch.autograd.grad(margin.sum(), gates)
        with torch.no_grad():
            means, peaks, zeros = [], [], []
            for layer in victim.layers:
                active = _by_pixel(values[layer.mask_nodes[-1]], layer).relu()
                means.append(active.mean(2))
                peaks.append(active.amax(2))
                zeros.append(1 - active.count_nonzero((0, 2)) / (active.shape[0] * active.shape[2]))
            raw = [_by_pixel(values[layer.node], layer) for layer in victim.layers]
            var, m1 = (torch.cat(m) for m in zip(*[torch.var_mean(r, (0, 2), correction=0) for r in raw], strict=True))
            sums += len(x) * torch.stack([torch.cat(zeros), m1, var + m1.square()]).double().cpu()
        found = (margin.detach(), gradient, torch.cat(means, 1), torch.cat(peaks, 1))
        parts.append(tuple(part.float().cpu() for part in found))
    zero, m1, m2 = (sums / len(images)).float()
    margin, gradient, mean, peak = (torch.cat(part) for part in zip(*parts, strict=True))
    return _Pass(margin, gradient, mean, peak, zero, m1, m2)


def _by_pixel(out: Tensor, layer: Layer) -> Tensor:
    """[N, K, pixels]; a linear layer's units lie along the last dimension."""
    return (out if layer.kind == "conv" else out.movedim(-1, 1)).reshape(len(out), layer.units, -1)


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


def _effect(changed: Tensor, base: Tensor) -> Tensor:
    """Shift of the mean [V] in standard deviations of the clean images."""
    return (changed.mean(0) - base.mean(0)) / base.std(0).clamp_min(1e-3 * base.abs().mean().item() + 1e-12)


def _moments(base: _Pass) -> dict[str, Tensor]:
    mean, std = base.mean.mean(0), base.mean.std(0)
    skew = ((base.mean - mean) ** 3).mean(0) / std.clamp_min(1e-6) ** 3
    return {"act_mean": mean, "act_std": std, "act_skew": skew, "act_zero": base.zero, "act_max": base.peak.amax(0)}


def _selectivity(mean: Tensor, labels: Tensor) -> Tensor:
    """How far the most active class stands out, in standard deviations."""
    member = F.one_hot(labels.cpu(), int(labels.max()) + 1).float()
    by_class = (member.T @ mean) / member.sum(0).clamp_min(1)[:, None]
    return (by_class.amax(0) - mean.mean(0)) / mean.std(0).clamp_min(1e-6)


def _entropy(mean: Tensor) -> Tensor:
    """Differential entropy of the activation by m-spacings (Vasicek 1976), the statistic of EP (NeurIPS 2022)."""
    count = len(mean)
    m = max(1, int(math.sqrt(count) / 2))
    spacing = mean.sort(0).values
    gaps = spacing[2 * m :] - spacing[: -2 * m]
    return torch.log(gaps.clamp_min(1e-8) * count / (2 * m)).mean(0) if len(gaps) else torch.zeros(mean.shape[1])


def _bn_divergence(victim: Victim, base: _Pass) -> Tensor:
    """KL(clean batch || running statistics): the running ones still hold the poisoned images (BNP, NeurIPS 2022)."""
    out, state = torch.zeros(victim.units), victim.model.state_dict()
    for layer in victim.layers:
        if len(layer.norm_stats) >= 2:
            units = slice(layer.offset, layer.offset + layer.units)
            running_mean, running_var = (state[key].float().cpu() for key in layer.norm_stats[:2])
            variance = (base.m2[units] - base.m1[units].square()).clamp_min(1e-8)
            shift = (base.m1[units] - running_mean).square()
            running_var = running_var.clamp_min(1e-8)
            out[units] = (running_var / variance).log() / 2 + (variance + shift) / (2 * running_var) - 0.5
    return out


def _lipschitz(victim: Victim) -> Tensor:
    """Largest singular value of each filter as a [C, R * S] matrix, times |gamma / std| (CLP, https://arxiv.org/abs/2208.03111)."""
    parts, state = [], victim.model.state_dict()
    for layer in victim.layers:
        weight = state[layer.weight].float().cpu()
        weight = weight.flatten(2) if layer.kind == "conv" else weight[:, None]
        gram = weight.transpose(1, 2) @ weight if weight.shape[1] > weight.shape[2] else weight @ weight.transpose(1, 2)
        sigma = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
        if layer.norm and len(layer.norm_stats) >= 2:
            variance = state[layer.norm_stats[1]].float().cpu()
            sigma = sigma * (state[layer.norm[0]].float().cpu().abs() / (variance + 1e-5).sqrt())
        parts.append(sigma)
    return torch.cat(parts)


def _l1(victim: Victim) -> Tensor:
    state = victim.model.state_dict()
    return torch.cat([state[layer.weight].float().cpu().abs().flatten(1).sum(1) for layer in victim.layers])


def _saliency_gap(victim: Victim, base: _Pass) -> Tensor:
    """Residual of the log saliency on the log L1 norm, within each layer: large weights of little clean use (MNP)."""
    norm = _l1(victim).clamp_min(1e-8).log()
    saliency = base.gradient.abs().mean(0).clamp_min(1e-8).log()
    out = torch.zeros(victim.units)
    for layer in victim.layers:
        units = slice(layer.offset, layer.offset + layer.units)
        x, y = norm[units] - norm[units].mean(), saliency[units] - saliency[units].mean()
        out[units] = y - x * (x @ y) / (x @ x).clamp_min(1e-8)
    return out


def _position(victim: Victim) -> dict[str, Tensor]:
    layers = victim.layers
    sizes = [sum(other.group == layer.group for other in layers) for layer in layers]
    rows = [
        (index / max(1, len(layers) - 1), math.log2(layer.units) / 10, math.log2(size) / 3, layer.stage / 5, linear)
        for index, (layer, size) in enumerate(zip(layers, sizes, strict=True))
        for linear in (float(layer.kind == "linear"),)
    ]
    per_unit = torch.repeat_interleave(torch.tensor(rows), torch.tensor([layer.units for layer in layers]), dim=0)
    return dict(zip(POSITION, per_unit.T, strict=True))
