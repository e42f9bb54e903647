"""Detectors without trigger inversion: the class that augmented images are taken for, and the shortest shift of the features.

The latent minimum-norm shift: for a linear head (W, b) on features x the smallest shift s that moves *all* clean images to
class k solves min |s|^2 subject to (w_k - w_j).s >= q_j for every j, where q_j is the largest margin
-((w_k - w_j).x + b_k - b_j) over images. A backdoor is a shortcut in feature space, so its target needs a shorter shift than
other classes (TAC-QP, https://arxiv.org/abs/2511.08944).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from onp.data.augment import augmented
from onp.data.images import ImageSet
from onp.detect.last_features import reader_of
from onp.model.victim import Victim

AUGMENTATIONS = 4  # of each image
ADDED = 8  # constraints at once
TOLERANCE = 1e-9  # of a constraint, in logits


@torch.no_grad()
def augmentation_bias(victim: Victim, images: ImageSet, seed: int) -> Tensor:
    """Mean probability, float32 `[classes]`, of each class on augmented images of other classes.

    A backdoor responds to many changes of an image that are not its trigger, so its target attracts much of what the network
    gets wrong. (TeCo, https://arxiv.org/abs/2303.18191, also reads corrupted images, but those with the trigger on.)
    """
    pixels = augmented(images.pixels(), AUGMENTATIONS, seed).to(victim.device)
    probability = torch.cat([victim.logits(part).softmax(1) for part in pixels.split(64)]).cpu()
    labels = images.labels.repeat(AUGMENTATIONS)
    return torch.stack([probability[labels != k, k].mean() for k in range(victim.classes)])


def latent_distances(victim: Victim, images: ImageSet) -> Tensor | None:
    """Length float32 `[classes]` of the latent minimum-norm shift; None where the head is not linear on a vector."""
    reader = reader_of(victim)
    if reader.head is None:
        return None
    return minimum_norm_shifts(reader.features(images.pixels()), reader.head.weight, reader.head.bias).norm(dim=1)


def minimum_norm_shifts(features: Tensor, weight: Tensor, bias: Tensor, quantile: float = 0.99) -> Tensor:
    """The shortest shift of the features that leads images to each class.

    Args:
        features: `[N, D]` inputs of the head on clean images.
        weight: `[classes, D]` of the head.
        bias: `[classes]`.
        quantile: share of the images that each constraint must hold for; at 1 a single image decides.

    Returns:
        float32 `[classes, D]`; a row's norm is that class's distance.
    """
    logits = weight.double() @ features.double().T + bias.double()[:, None]
    rows, rows_of_weight = [], weight.double().numpy()
    for k in range(len(weight)):
        needed = _quantile(logits - logits[k], quantile)
        needed[k] = -torch.inf
        rows.append(_shortest(rows_of_weight, k, needed.numpy()))
    return torch.from_numpy(np.stack(rows)).float()


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """A high quantile of each row, by its few highest values: `[K, N]` to `[K]`."""
    place = quantile * (values.shape[1] - 1)
    highest = values.topk(values.shape[1] - int(place)).values
    upper, lower = highest[:, max(0, highest.shape[1] - 2)], highest[:, -1]
    return lower + (place - int(place)) * (upper - lower)


def _shortest(weight: np.ndarray, k: int, needed: np.ndarray) -> np.ndarray:
    """min |s| subject to (weight[k] - weight[j]) @ s >= needed[j] for all j, by the few constraints that matter.

    Those that the shift so far violates most are added until it violates none, so that of 1,000 classes only those are solved
    for that lie in the way.
    """
    active = np.zeros(len(needed), dtype=bool)
    shift = np.zeros(weight.shape[1])
    for _ in range(len(needed)):
        missing = np.where(active, -np.inf, needed + weight @ shift - weight[k] @ shift)
        worst = np.argsort(-missing, kind="stable")[:ADDED]
        worst = worst[missing[worst] > TOLERANCE]
        if not len(worst):
            break
        active[worst] = True
        shift = _least_distance(weight[k] - weight[active], needed[active])
        if not np.isfinite(shift).all():  # no shift meets these constraints
            break
    return shift


def _least_distance(directions: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """min |s| subject to directions @ s >= needed, as least distance programming (Lawson and Hanson 1974, chapter 23)."""
    system = np.vstack((directions.T, needed[None]))
    right = np.zeros(len(system))
    right[-1] = 1.0
    solution, _ = nnls(system, right)
    residual = system @ solution - right
    if abs(residual[-1]) < 1e-12:
        return np.full(directions.shape[1], np.inf)
    return -residual[:-1] / residual[-1]
