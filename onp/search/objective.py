"""What a mask is worth: the potential whose differences are the rewards, and which masks are acceptable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# ACC that unseen images lose for each nat of KL divergence: 0.24 to 0.33 over about 100 masks each of three repairs, with rank
# correlation 0.84 to 0.97 (`bench/acc_loss_estimators.py`; of the clean images' own ACC loss the correlation is 0.5 to 0.9).
ACC_LOST_PER_NAT = 0.3
COUNTED_SHARE = 0.5  # of the ACC budget that may be lost by count: a few hundred images do not show every loss
LEAST_ACC_DROP = 0.005  # in the denominator of the penalty, so that a budget of 0 has one


@dataclass(frozen=True, eq=False)
class MaskEffects:
    """What B masks change against the unpruned network, float64 `[B]` each, on the CPU; shares are of 1."""

    asr: Tensor  #: surrogate ASR, weighted over the trigger families
    counted_acc_loss: Tensor  #: share of the clean images that became wrong, net
    expected_acc_loss: Tensor  #: ACC that unseen images are expected to lose: `ACC_LOST_PER_NAT` times the divergence
    acc_loss: Tensor  #: half the counted loss, a quarter of the expected one, a quarter of the labels' mean probability lost
    augment_loss: Tensor  #: share of the augmented clean images that were right and no longer are
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

    Phi = -asr - w_acc * expected_acc_loss - w_over_budget * max(0, expected_acc_loss - acc_budget)
          - w_augment * max(0, augment_loss)
          - w_counted * max(0, counted_acc_loss - counted_acc_drop) / max(counted_acc_drop, 0.005)
          - w_size * pruned - w_backdoor * backdoor_left,
    with the terms of `MaskEffects`. `asr` and `augment_loss` are the mean of a share of images and of a mean probability: the
    share is what counts, the probability is smooth. The term of the backdoor neurons is there because the smallest mask that
    stops the surrogate triggers may leave units that the attacker's trigger still uses.
    """

    counted_acc_drop: float = 0.01  #: largest counted ACC loss of an acceptable mask, a share of the clean images
    acc_budget: float = 0.01  #: largest `acc_loss` of an acceptable mask: the ACC that the user would give, as a share
    w_acc: float = 2.0  #: ACC against ASR while no more than the budget is expected to be lost
    w_over_budget: float = 14.0  #: added to `w_acc` beyond the budget
    w_augment: float = 1.0
    w_counted: float = 2.0
    w_size: float = 1.0
    w_backdoor: float = 0.5

    def with_budget(self, share: float) -> Objective:
        """The same with another ACC budget, as a share."""
        return replace(self, acc_budget=share, counted_acc_drop=COUNTED_SHARE * share)

    def part(self, share: float) -> Objective:
        """The same with a part of the ACC budget, 0 to 1."""
        return replace(self, acc_budget=share * self.acc_budget, counted_acc_drop=share * self.counted_acc_drop)

    def after_loss(self, share: float) -> Objective:
        """The same when `share` of the ACC is lost already."""
        drop, budget = (max(allowed - share, 0.0) for allowed in (self.counted_acc_drop, self.acc_budget))
        return replace(self, counted_acc_drop=drop, acc_budget=budget)

    def potential(self, effects: MaskEffects) -> Tensor:
        """Phi of B masks, float64 `[B]`."""
        excess = (effects.counted_acc_loss - self.counted_acc_drop).clamp_min(0) / max(self.counted_acc_drop, LEAST_ACC_DROP)
        return (
            -effects.asr
            - self.w_acc * effects.expected_acc_loss
            - self.w_over_budget * (effects.expected_acc_loss - self.acc_budget).clamp_min(0)
            - self.w_augment * effects.augment_loss.clamp_min(0)
            - self.w_counted * excess
            - self.w_size * effects.pruned
            - self.w_backdoor * effects.backdoor_left
        )

    def acceptable(self, effects: MaskEffects) -> Tensor:
        """bool `[B]`: the ACC loss is within the budget, counted and estimated.

        Counting alone favours masks whose losses happen to miss these images: the best of hundreds of masks overfits a few
        hundred images. The estimates from divergence and probability were not selected on (docs/ablations.md).
        """
        counted = effects.counted_acc_loss <= self.counted_acc_drop + 1e-9
        return counted & (effects.acc_loss <= self.acc_budget + 1e-9)
