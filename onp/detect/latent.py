"""The latent minimum-norm direction: how little must change in feature space to send every image to one class.

For a linear head (W, b) on features x the smallest shift s that moves *all* clean images to class k solves
min |s|^2 subject to (w_k - w_j).s >= q_j for every j, where q_j is the largest margin -((w_k - w_j).x + b_k - b_j) over images.
A backdoor is a shortcut in feature space, so its target needs a shorter shift than other classes (TAC-QP, arXiv 2511.08944).
"""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor


def latent_directions(features: Tensor, weight: Tensor, bias: Tensor, quantile: float = 0.99) -> Tensor:
    """Shortest shift per class.

    Args:
        features: `[N, D]` inputs of the head on clean images.
        weight: `[classes, D]` of the head.
        bias: `[classes]`.
        quantile: share of the images that each constraint must hold for; 1 lets one odd image decide.

    Returns:
        float32 `[classes, D]`; a row's norm is that class's distance.
    """
    logits = features.double() @ weight.double().T + bias.double()
    rows = []
    for k in range(len(weight)):
        others = [j for j in range(len(weight)) if j != k]
        directions = (weight[k] - weight[others]).double()
        needed = torch.quantile(logits[:, others] - logits[:, [k]], quantile, dim=0)
        rows.append(_shortest(directions.cpu().numpy(), needed.cpu().numpy()))
    return torch.from_numpy(np.stack(rows)).float()


def _shortest(directions: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """min |s| subject to directions @ s >= needed, as least distance programming (Lawson and Hanson 1974, chapter 23)."""
    system = np.vstack((directions.T, needed[None]))
    right = np.zeros(len(system))
    right[-1] = 1.0
    solution, _ = nnls(system, right)
    residual = system @ solution - right
    if abs(residual[-1]) < 1e-12:
        return np.full(directions.shape[1], np.inf)
    return -residual[:-1] / residual[-1]
