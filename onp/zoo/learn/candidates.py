"""Models that the verdict's is compared with, and itself: each as a `onp.zoo.learn.validation.Candidate`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from onp.detect.class_features import FEATURES, INDEX, Array
from onp.detect.probability import USUAL_CLASSES
from onp.zoo.learn.design import Design, Rows
from onp.zoo.learn.logit import PAIR, likelihood, weights
from onp.zoo.learn.tails import fit_tails
from onp.zoo.learn.validation import Candidate

PLAIN = 0.3  # of the plain sum that counts against the number of classes, before calibration
SCALE = 4.0  # nats that are 1 for the set network


def tails(design: Design, learned: Rows, judged: Rows) -> Array:
    """The verdict's model."""
    return fit_tails(design, learned).log_odds(judged)


def plain_sum(design: Design, learned: Rows, judged: Rows) -> Array:
    """The same as if all detectors were independent, as in Fisher's method."""
    scores = PLAIN * fit_tails(design, learned).nats(judged).sum(2) - np.log(design.classes[judged] / USUAL_CLASSES)[:, None]
    return np.where(design.exists[judged], scores, -np.inf)


def weighted(design: Design, learned: Rows, judged: Rows) -> Array:
    """The plain sum with a weight for each detector, learned from clean and backdoored networks."""
    fitted = fit_tails(design, learned)
    scores = fitted.nats(judged) @ weights(fitted, learned) - np.log(design.classes[judged] / USUAL_CLASSES)[:, None]
    return np.where(design.exists[judged], scores, -np.inf)


def hand_made(design: Design, learned: Rows, judged: Rows) -> Array:
    """Clipped anomaly indices, summed by the rule of `onp.detect.anomaly`; learns nothing."""
    return np.where(design.exists[judged], design.hand_made[judged], -np.inf)


def boosting(design: Design, learned: Rows, judged: Rows) -> Array:
    """Gradient boosting of classes (scikit-learn), rising with every feature; log odds of a class by itself."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    flat = fit_tails(design, learned).nats(np.arange(len(design.owner)))
    context = np.stack((design.group, np.log(design.classes)), 1)[:, None].repeat(flat.shape[1], 1)
    inputs = np.concatenate((flat, context), 2)
    here = np.nonzero(design.exists[learned])
    model = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=80,
        max_leaf_nodes=8,
        min_samples_leaf=20,
        l2_regularization=5.0,
        monotonic_cst=[1] * flat.shape[2] + [0, 0],
        early_stopping=False,
        random_state=0,
    )
    weight = np.broadcast_to(design.balanced(learned)[:, None], design.exists[learned].shape)
    model.fit(inputs[learned][here], design.is_target[learned][here], sample_weight=weight[here])
    scores = np.full(design.exists[judged].shape, -np.inf)
    there = np.nonzero(design.exists[judged])
    scores[there] = model.decision_function(inputs[judged][there])
    return scores


class SetNetwork(nn.Module):
    """Log odds of classes from their features, and the mean and maximum of hidden values over classes; in no order."""

    def __init__(self, inputs: int, hidden: int = 24) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(3 * hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, inputs: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """`[R, C, inputs]` and bool `[R, C]` to `[R, C]`."""
        hidden = torch.relu(self.first(inputs)) * exists[..., None]
        mean = hidden.sum(1, keepdim=True) / exists.sum(1)[:, None, None]
        pooled = torch.cat((mean, hidden.amax(1, keepdim=True)), 2).expand(-1, hidden.shape[1], -1)
        scores = self.last(torch.relu(self.second(torch.cat((hidden, pooled), 2))))[..., 0]
        return scores.masked_fill(~exists, -np.inf)


def set_network(design: Design, learned: Rows, judged: Rows, steps: int = 200) -> Array:
    """A small network of sets; free of constraints."""
    flat = fit_tails(design, learned).nats(np.arange(len(design.owner))) / SCALE
    missing = np.isnan(design.costs)
    context = np.stack((design.group, np.log(design.classes)), 1)[:, None].repeat(flat.shape[1], 1)
    inputs = torch.from_numpy(np.concatenate((flat, missing, context), 2)).float()
    exists = torch.from_numpy(design.exists)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SetNetwork(inputs.shape[2])
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.05)
        weight = torch.from_numpy(design.balanced(learned))
        for _ in range(steps):
            scores = network(inputs[learned], exists[learned])
            _, by_score, _ = likelihood(scores.detach().double().numpy(), design.is_target[learned], np.log(PAIR))
            gradient = torch.from_numpy(by_score) * weight[:, None] / weight.sum()
            optimiser.zero_grad()
            scores.backward(gradient.masked_fill(~exists[learned], 0.0).float())
            optimiser.step()
    with torch.no_grad():
        return network(inputs[judged], exists[judged]).double().numpy()


def one_detector(name: str) -> Candidate:
    """The anomaly index of one detector alone; learns nothing."""
    return partial(_one_detector, name)


def _one_detector(name: str, design: Design, learned: Rows, judged: Rows) -> Array:
    features = design.features(design.floors(learned))[judged]
    values = features[:, :, design.detectors.index(name), FEATURES.index(INDEX)]
    return np.where(design.exists[judged], np.nan_to_num(values), -np.inf)


CANDIDATES: dict[str, Candidate] = {
    "tails": tails,
    "plain_sum": plain_sum,
    "weighted": weighted,
    "boosting": boosting,
    "set_network": set_network,
    "hand_made": hand_made,
}
"""By name."""
