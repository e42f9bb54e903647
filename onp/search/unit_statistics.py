"""What is measured of each unit: activations on a set of images, weights, norms, position in the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.model.interpret import gated_forward
from onp.model.layers import Layer
from onp.model.victim import Victim

POSITION = ("depth", "width", "group_size", "stage", "is_linear")
PIXELS_PER_CHUNK = 64 * 32 * 32  # keeps the activations of one backward pass within about 1 GB for a ResNet-18


@dataclass(frozen=True, eq=False)
class Pass:
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


def run_pass(victim: Victim, images: Tensor, labels: Tensor) -> Pass:
    nodes = [layer.mask_nodes[-1] for layer in victim.layers] + [layer.node for layer in victim.layers]
    parts: list[tuple[Tensor, ...]] = []
    sums = torch.zeros(3, victim.units, dtype=torch.float64)
    for x, y in chunks(images, labels):
        gates = torch.ones(len(x), victim.units, device=x.device, requires_grad=True)
        logits, values = gated_forward(victim, x, gates, outputs=tuple(dict.fromkeys(nodes)))
        margin = margin_of(logits, y)
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
    return Pass(margin, gradient, mean, peak, zero, m1, m2)


def _by_pixel(out: Tensor, layer: Layer) -> Tensor:
    """[N, K, pixels]; a linear layer's units lie along the last dimension."""
    return (out if layer.kind == "conv" else out.movedim(-1, 1)).reshape(len(out), layer.units, -1)


def chunks(images: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    size = max(4, min(128, PIXELS_PER_CHUNK // math.prod(images.shape[2:])))
    return zip(images.split(size), labels.split(size), strict=True)


def margin_of(logits: Tensor, labels: Tensor) -> Tensor:
    """log p / (1 - p) of the label, [N]."""
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -math.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(1)


def effect(changed: Tensor, base: Tensor) -> Tensor:
    """Shift of the mean [V] in standard deviations of the clean images."""
    return (changed.mean(0) - base.mean(0)) / base.std(0).clamp_min(1e-3 * base.abs().mean().item() + 1e-12)


def moments(base: Pass) -> dict[str, Tensor]:
    mean, std = base.mean.mean(0), base.mean.std(0)
    skew = ((base.mean - mean) ** 3).mean(0) / std.clamp_min(1e-6) ** 3
    return {"act_mean": mean, "act_std": std, "act_skew": skew, "act_zero": base.zero, "act_max": base.peak.amax(0)}


def shape_of_activation(base: Pass) -> dict[str, Tensor]:
    """What does not change with the scale of a unit, [V] each: all in standard deviations of the mean activation."""
    std = base.mean.std(0).clamp_min(1e-6)
    return {
        "act_ratio": base.mean.mean(0) / std,
        "act_peak": base.peak.amax(0) / std,
        "negentropy": std.log() - entropy(base.mean),
    }


def selectivity(mean: Tensor, labels: Tensor) -> Tensor:
    """How far the most active class stands out, in standard deviations."""
    member = F.one_hot(labels.cpu(), int(labels.max()) + 1).float()
    by_class = (member.T @ mean) / member.sum(0).clamp_min(1)[:, None]
    return (by_class.amax(0) - mean.mean(0)) / mean.std(0).clamp_min(1e-6)


def entropy(mean: Tensor) -> Tensor:
    """Differential entropy of the activation by m-spacings (Vasicek 1976), the statistic of EP (NeurIPS 2022)."""
    count = len(mean)
    m = max(1, int(math.sqrt(count) / 2))
    spacing = mean.sort(0).values
    gaps = spacing[2 * m :] - spacing[: -2 * m]
    return torch.log(gaps.clamp_min(1e-8) * count / (2 * m)).mean(0) if len(gaps) else torch.zeros(mean.shape[1])


def bn_divergence(victim: Victim, base: Pass) -> Tensor:
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


def lipschitz(victim: Victim) -> Tensor:
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


def l1(victim: Victim) -> Tensor:
    state = victim.model.state_dict()
    return torch.cat([state[layer.weight].float().cpu().abs().flatten(1).sum(1) for layer in victim.layers])


def saliency_gap(victim: Victim, base: Pass) -> Tensor:
    """Residual of the log saliency on the log L1 norm, within each layer: large weights of little clean use (MNP)."""
    norm = l1(victim).clamp_min(1e-8).log()
    saliency = base.gradient.abs().mean(0).clamp_min(1e-8).log()
    out = torch.zeros(victim.units)
    for layer in victim.layers:
        units = slice(layer.offset, layer.offset + layer.units)
        x, y = norm[units] - norm[units].mean(), saliency[units] - saliency[units].mean()
        out[units] = y - x * (x @ y) / (x @ x).clamp_min(1e-8)
    return out


def position(layers: Sequence[Layer]) -> dict[str, Tensor]:
    sizes = [sum(other.group == layer.group for other in layers) for layer in layers]
    rows = [
        (index / max(1, len(layers) - 1), math.log2(layer.units) / 10, math.log2(size) / 3, layer.stage / 5, linear)
        for index, (layer, size) in enumerate(zip(layers, sizes, strict=True))
        for linear in (float(layer.kind == "linear"),)
    ]
    per_unit = torch.repeat_interleave(torch.tensor(rows), torch.tensor([layer.units for layer in layers]), dim=0)
    return dict(zip(POSITION, per_unit.T, strict=True))
