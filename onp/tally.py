"""The images an evaluator scores and how logits become counts: hits and probabilities by family."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.errors import InputError
from onp.victim import Victim


@dataclass(frozen=True)
class Batch:
    """Clean images: `images` float32 normalised `[N, C, H, W]`, `labels` int64 `[N]`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TriggeredBatch:
    """Images with a trigger of one family: `images` float32 normalised `[M, C, H, W]`, `labels` int64 `[M]` the true
    labels (-1 where unknown), `target` int64 `[M]` the class the trigger aims at."""

    family: str
    images: Tensor
    labels: Tensor
    target: Tensor


class Tally:
    """Turns the logits of all images, clean first and then family by family, into sums.

    An image of a family counts where its true label is not the target; -1 counts. `counted` float64 `[1 + F]` is the
    number of images that count, `member` float64 `[N, 1 + F]` says where each does, `expected` int64 `[N]` is its class. Raises
    InputError for batches that do not fit the victim or of which no image counts.
    """

    def __init__(self, victim: Victim, clean: Batch, triggered: Sequence[TriggeredBatch], device: torch.device) -> None:
        expected, counts = [clean.labels], [torch.ones_like(clean.labels, dtype=torch.bool)]
        _check("the clean batch", victim, clean.images, clean.labels, clean.labels)
        for batch in triggered:
            _check(f"the batch {batch.family!r}", victim, batch.images, batch.labels, batch.target)
            expected.append(batch.target)
            counts.append(batch.labels != batch.target)
            if not counts[-1].any():
                raise InputError(
                    f"every image of {batch.family!r} belongs to the target class; give images of other classes"
                )
        names = [batch.family for batch in triggered]
        if len(set(names)) != len(names):
            raise InputError(f"the families {names} are not all different; give every batch its own name")
        # A 0/1 matrix product in float64 counts exactly.
        self.member = torch.block_diag(*[part.double()[:, None] for part in counts]).to(device)
        self.expected = torch.cat(expected).to(device)
        self.counted = self.member.sum(0).cpu().numpy()

    def sums(self, logits: Tensor) -> Tensor:
        """`logits` float32 `[N, classes]` of all images -> float64 `[2, 1 + F]`: hits, summed class probabilities."""
        hits = (logits.argmax(1) == self.expected).double()
        probability = logits.softmax(1).gather(1, self.expected[:, None])[:, 0].double()
        return torch.stack([hits, probability]) @ self.member


def _check(name: str, victim: Victim, images: Tensor, labels: Tensor, target: Tensor) -> None:
    if images.shape[1:] != torch.Size(victim.input_shape) or not len(images):
        channels, height, width = victim.input_shape
        raise InputError(
            f"{name} has images {list(images.shape)}; the network takes [N, {channels}, {height}, {width}] with N >= 1"
        )
    if labels.shape != (len(images),) or target.shape != (len(images),):
        raise InputError(
            f"{name} has {len(images)} images, labels {list(labels.shape)} and targets {list(target.shape)}"
        )
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= victim.classes:
        raise InputError(f"{name} has classes {low} to {high}; the network knows 0 to {victim.classes - 1}")
