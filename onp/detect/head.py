"""The last linear layer alone: a target's row of weights differs from the rows of other classes.

Training on triggered images makes the logit of the target answer to more features than other logits do. Indicators of the rows
find that without any image, in milliseconds (DFBScanner, https://arxiv.org/abs/2605.18907; BARBIE, NDSS 2025, combines fifteen
of them). Those three stay that separate targets from other classes on networks of known truth (docs/ablations.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from onp.model.interpret import constant, logits_node
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer that is linear on a vector."""

    weight: Tensor  #: float32 `[classes, D]`, on the CPU
    bias: Tensor  #: float32 `[classes]`; zeros where the layer has none

    def logits(self, features: Tensor) -> Tensor:
        """Of features float32 `[N, D]` on the CPU."""
        return features @ self.weight.T + self.bias


def head_of(victim: Victim) -> Head | None:
    """The last linear layer of the victim; None where its logits come from another operation."""
    node = logits_node(victim.program.graph)
    if node.target is not torch.ops.aten.linear.default or not isinstance(node.args[1], fx.Node):
        return None
    weight = constant(victim.program, node.args[1]).cpu()
    bias = node.args[2] if len(node.args) > 2 else None
    return Head(weight, constant(victim.program, bias).cpu() if isinstance(bias, fx.Node) else torch.zeros(len(weight)))


def row_mean(weight: Tensor) -> Tensor:
    """Minus the mean of each row, in standard deviations of all weights."""
    return -weight.mean(1) / weight.std()


def row_positive(weight: Tensor) -> Tensor:
    """Minus the log length of the positive weights of each row."""
    return -weight.clamp_min(0).norm(dim=1).clamp_min(1e-12).log()


def row_skew(weight: Tensor) -> Tensor:
    """The skewness of each row: low where many features raise the logit and few lower it."""
    centred = weight - weight.mean(1, keepdim=True)
    return (centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)).pow(3).mean(1)


HEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "head_mean": row_mean,
    "head_positive": row_positive,
    "head_skew": row_skew,
}


def head_costs(victim: Victim) -> dict[str, tuple[float, ...]]:
    """Indicators of each class's weights less the mean of all classes, which changes no probability.

    Returns:
        per indicator (`HEAD`) a value for each class, low where it is suspicious; empty where `head_of` finds no head.
    """
    head = head_of(victim)
    if head is None:
        return {}
    weight = head.weight.double() - head.weight.double().mean(0)
    return {name: tuple(indicator(weight).tolist()) for name, indicator in HEAD.items()}
