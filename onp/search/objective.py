"""What a mask is worth: the potential whose differences are the rewards, and which masks are acceptable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# What a mask costs unseen images, from what it does to a few hundred: fitted on networks of the zoo, whose truth is known
# (`bench/expected_acc_loss.py`, docs/ablations.md). Of the images that became wrong most are chance, the divergence is not.
ACC_LOST_PER_COUNTED = 0.25
ACC_LOST_PER_NAT = 0.2
# The best of some hundred masks owes part of its low expected loss to these images: what it truly costs is up to twice as much.
SELECTION = 1.5


@dataclass(frozen=True, eq=False)
class MaskEffects:
    """What B masks change against the unpruned network, float64 `[B]` each, on the CPU; shares are of 1."""

    asr: Tensor  #: surrogate ASR, weighted over the trigger families
    counted_acc_loss: Tensor  #: share of the clean images that became wrong, net
    expected_acc_loss: Tensor  #: ACC that unseen images are expected to lose, see `expected_acc_loss`
    target_loss: Tensor  #: share of the augmented images of the target class that were right and no longer are
    pruned: Tensor  #: share of the units
    backdoor_left: Tensor  #: sum of the backdoor scores of the units that are kept

    @staticmethod
    def joined(effects: Sequence[MaskEffects]) -> MaskEffects:
        """Those of several sets of masks, one after the other."""
        names = MaskEffects.__dataclass_fields__
        return MaskEffects(*(torch.cat([getattr(each, name) for each in effects]) for name in names))

    def at(self, index: int) -> MaskEffects:
        """Those of one mask, as B = 1."""
        part = slice(index, index + 1)
        return MaskEffects(*(getattr(self, name)[part] for name in MaskEffects.__dataclass_fields__))


@dataclass(frozen=True)
class Objective:
    """The potential Phi; a reward is a difference of it (potential-based shaping).

    Phi = -asr - w_acc * expected_acc_loss - w_over_budget * max(0, expected_acc_loss - limit)
          - w_target * max(0, target_loss)
          - w_size * pruned - w_backdoor * backdoor_left,
    with the terms of `MaskEffects`. `asr` and `target_loss` are the mean of a share of images and of a mean probability: the
    share is what counts, the probability is smooth. The term of the backdoor neurons is there because the smallest mask that
    stops the surrogate triggers may leave units that the attacker's trigger still uses.
    """

    acc_budget: float = 0.01  #: the ACC that the user would give, as a share
    w_acc: float = 2.0  #: ACC against ASR while no more than the budget is expected to be lost
    w_over_budget: float = 14.0  #: added to `w_acc` beyond the budget
    w_target: float = 0.5
    w_size: float = 1.0
    w_backdoor: float = 0.5

    @property
    def limit(self) -> float:
        """The largest `expected_acc_loss` of an acceptable mask, a share: less than the budget, by `SELECTION`."""
        return self.acc_budget / SELECTION

    def with_budget(self, share: float) -> Objective:
        """The same with another ACC budget, as a share."""
        return replace(self, acc_budget=share)

    def part(self, share: float) -> Objective:
        """The same with a part of the ACC budget, 0 to 1."""
        return replace(self, acc_budget=share * self.acc_budget)

    def after_loss(self, share: float) -> Objective:
        """The same when `share` of the ACC is lost already."""
        return replace(self, acc_budget=max(self.acc_budget - share, 0.0))

    def potential(self, effects: MaskEffects) -> Tensor:
        """Phi of B masks, float64 `[B]`."""
        return (
            -effects.asr
            - self.w_acc * effects.expected_acc_loss
            - self.w_over_budget * (effects.expected_acc_loss - self.limit).clamp_min(0)
            - self.w_target * effects.target_loss.clamp_min(0)
            - self.w_size * effects.pruned
            - self.w_backdoor * effects.backdoor_left
        )

    def acceptable(self, effects: MaskEffects) -> Tensor:
        """bool `[B]`: the expected ACC loss is within the limit."""
        return effects.expected_acc_loss <= self.limit + 1e-9


def expected_acc_loss(counted: Tensor, divergence: Tensor) -> Tensor:
    """The ACC that unseen images are expected to lose, a share, at least 0.

    Args:
        counted: share of the clean images that became wrong, net.
        divergence: mean KL divergence from the unpruned network's probabilities on them, nats.
    """
    return (ACC_LOST_PER_COUNTED * counted + ACC_LOST_PER_NAT * divergence).clamp_min(0)
