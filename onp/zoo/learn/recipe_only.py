"""What a predictor makes of the training recipe alone: at chance, where clean and backdoored networks are trained alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onp.detect.class_features import Array
from onp.zoo.learn.metrics import Judged
from onp.zoo.learn.networks import Network

FOLDS = 10
NAMES = ("arch", "data", "norm", "optimiser")
LOGARITHMS = ("width", "images", "epochs", "lr", "batch", "weight_decay")
NUMBERS = ("smoothing", "averaging", "pad", "flip", "imbalance")


def recipe_only(networks: Sequence[Network]) -> dict[str, Judged]:
    """Probabilities of logistic regression and of gradient boosting (scikit-learn), `FOLDS`-fold over networks."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    kept = [network for network in networks if network.known]
    truth = np.array([not network.clean for network in kept])
    inputs = _inputs([network.card["training"] for network in kept])
    fold = np.random.default_rng(2).permutation(len(kept)) % min(FOLDS, len(kept))
    found = {}
    for name in ("logistic", "boosting"):
        probability = np.full(len(kept), truth.mean())
        for each in np.unique(fold):
            learned, judged = fold != each, fold == each
            if len(set(truth[learned].tolist())) < 2:
                continue
            scaler = StandardScaler().fit(inputs[learned])
            boosted = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=4, early_stopping=False, random_state=0)
            model: Any = LogisticRegression(C=0.1, max_iter=1000) if name == "logistic" else boosted
            model.fit(scaler.transform(inputs[learned]), truth[learned])
            probability[judged] = model.predict_proba(scaler.transform(inputs[judged]))[:, 1]
        found[name] = Judged.of(np.arange(len(kept)), truth, probability)
    return found


def _inputs(training: Sequence[dict[str, Any]]) -> Array:
    """`[networks, values]`."""
    columns = [[float(each[name] == value) for each in training] for name in NAMES for value in _values(training, name)]
    columns += [[math.log(each[name]) for each in training] for name in LOGARITHMS]
    columns += [[float(each[name]) for each in training] for name in NUMBERS]
    columns.append([float(len(each["labels"])) for each in training])
    return np.array(columns).T


def _values(training: Sequence[dict[str, Any]], name: str) -> list[str]:
    return sorted({str(each[name]) for each in training})
