"""Which of many classes triggers are inverted for."""

import torch

from onp.detect.anomaly import DetectionScores
from onp.detect.classes_to_invert import classes_to_invert, most_inverted


def scores(classes, **suspicious):
    costs = torch.rand(classes).tolist()
    for name, value in suspicious.items():
        costs[int(name[1:])] = value
    return DetectionScores.of({"latent": costs})


def test_few_classes_are_all_inverted():
    assert classes_to_invert(scores(7), range(7)) == tuple(range(7))


def test_of_many_the_most_suspicious_and_some_of_all_ranks_whatever_their_numbers():
    given = scores(100, k90=-5.0, k17=-4.0)
    chosen = classes_to_invert(given, range(100))
    assert (
        len(chosen) == len(set(chosen)) == most_inverted(100) == 9
        and {90, 17} <= set(chosen)
        and list(chosen) == sorted(chosen)
    )
    costs = given.log_costs["latent"]
    order = torch.randperm(100).tolist()
    moved = classes_to_invert(DetectionScores.of({"latent": [costs[k] for k in order]}), range(100))
    assert sorted(order[k] for k in moved) == list(chosen)
