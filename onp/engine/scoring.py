"""The images an evaluator scores, and how logits become sums: hits, probabilities, and on clean images divergence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.errors import InputError
from onp.model.victim import Victim
from onp_kernels.reference_conv import MOST_DIVERGENCE

LEAST = -1e30  # of a log-probability: that of an impossible class stays a number, and any other what it is


@dataclass(frozen=True)
class Batch:
    """Clean images."""

    images: Tensor  #: float32 `[N, C, H, W]`, normalised
    labels: Tensor  #: int64 `[N]`


@dataclass(frozen=True)
class TriggeredBatch:
    """Images with a trigger of one family."""

    family: str
    images: Tensor  #: float32 `[M, C, H, W]`, normalised
    labels: Tensor  #: int64 `[M]`: the true classes, -1 where unknown
    target: Tensor  #: int64 `[M]`: the class that the trigger aims at


class ScoreCounter:
    """Turns the logits of all images into sums, a column for each batch: clean, then the F families, then the A augmented ones.

    An image of a family counts where its true label is not the target; -1 counts.

    Attributes:
        counted: float64 `[1 + F + A]`, the number of images that count.
        member: float64 `[N, 1 + F + A]`, 1 in the column where an image counts.
        expected: int64 `[N]`, the class that makes an image a hit.
        base: float32 `[clean images, classes]`, the log-probabilities of the unpruned network.

    Raises:
        InputError: batches do not fit the victim, or no image of one counts.
    """

    def __init__(
        self, victim: Victim, clean: Batch, attacks: Sequence[TriggeredBatch], augmented: Sequence[Batch] = ()
    ) -> None:
        device = victim.device
        expected, counts = [clean.labels.to(device)], [torch.ones_like(clean.labels, dtype=torch.bool, device=device)]
        _check("the clean batch", victim, clean.images, clean.labels, clean.labels)
        for batch in attacks:
            _check(f"the batch {batch.family!r}", victim, batch.images, batch.labels, batch.target)
            expected.append(batch.target.to(device))
            counts.append((batch.labels != batch.target).to(device))
            if not counts[-1].any():
                raise InputError(f"every image of {batch.family!r} belongs to the target class; give images of other classes")
        names = [batch.family for batch in attacks]
        if len(set(names)) != len(names):
            raise InputError(f"the families {names} are not all different; give every batch its own name")
        for augmentation in augmented:
            _check("an augmented batch", victim, augmentation.images, augmentation.labels, augmentation.labels)
            expected.append(augmentation.labels.to(device))
            counts.append(torch.ones_like(expected[-1], dtype=torch.bool))
        # A 0/1 matrix product in float64 counts exactly.
        self.member = torch.block_diag(*[part.double()[:, None] for part in counts])
        self.expected = torch.cat(expected)
        self.counted = self.member.sum(0).cpu().numpy()
        with torch.no_grad():
            parts = [victim.model(part.to(device, torch.float32)) for part in clean.images.split(64)]
        self.base = torch.cat(parts).log_softmax(1).clamp_min(LEAST)

    def sums(self, logits: Tensor) -> Tensor:
        """Count the hits of one network.

        Args:
            logits: float32 `[N, classes]` of all images.

        Returns:
            float64 `[3, 1 + F + A]`. Row 0: hits. Row 1: the summed probabilities of the expected class. Row 2: of clean images
            the summed divergence KL(unpruned network || this one) in nats, at most `MOST_DIVERGENCE` an image; of others 0. An
            image whose logits are no numbers is a miss of probability 0 and diverges most.
        """
        logs = logits.log_softmax(1)
        broken = logs.isnan().any(1)
        hits = ((logits.argmax(1) == self.expected) & ~broken).double()
        probability = logs.gather(1, self.expected[:, None])[:, 0].exp().masked_fill(broken, 0)
        divergence = torch.zeros_like(probability)
        gap = self.base - logs[: len(self.base)].clamp_min(LEAST)
        clean = (self.base.exp() * gap).sum(1).clamp(0, MOST_DIVERGENCE)
        divergence[: len(clean)] = clean.masked_fill(broken[: len(clean)], MOST_DIVERGENCE)
        return torch.stack([hits, probability.double(), divergence.double()]) @ self.member


def _check(name: str, victim: Victim, images: Tensor, labels: Tensor, target: Tensor) -> None:
    if images.shape[1:] != torch.Size(victim.input_shape) or not len(images):
        channels, height, width = victim.input_shape
        raise InputError(
            f"{name} has images {list(images.shape)}; the network takes [N, {channels}, {height}, {width}] with N >= 1"
        )
    if labels.shape != (len(images),) or target.shape != (len(images),):
        raise InputError(f"{name} has {len(images)} images, labels {list(labels.shape)} and targets {list(target.shape)}")
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= victim.classes:
        raise InputError(f"{name} has classes {low} to {high}; the network knows 0 to {victim.classes - 1}")
