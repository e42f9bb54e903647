"""Detectors without trigger inversion: latent minimum-norm shift and augmentation bias, against what they are by hand."""

import pytest
import torch

from onp.data.augment import augmented
from onp.data.images import ImageSet
from onp.detect.detectors import AUGMENTATIONS, _least_distance, augmentation_bias, minimum_norm_shifts


def test_the_latent_shift_is_shortest_and_sufficient():
    features, weight, bias = torch.randn(80, 12), torch.randn(5, 12), torch.randn(5)
    for k, shift in enumerate(minimum_norm_shifts(features, weight, bias, quantile=1.0)):
        logits = ((features + shift).double() @ weight.double().T) + bias.double()
        margin = (logits[:, [k]] - logits).min()
        assert float(margin) > -1e-4  # every image reaches class k
        shorter = ((features + 0.98 * shift).double() @ weight.double().T) + bias.double()
        assert bool((shorter[:, [k]] - shorter < 0).any())  # and no shorter one in that direction does


def test_of_many_classes_no_other_shift_is_found_than_with_all_constraints_at_once():
    features, weight, bias = torch.randn(60, 10).relu(), torch.randn(40, 10), torch.randn(40)
    found = minimum_norm_shifts(features, weight, bias)
    logits = features.double() @ weight.double().T + bias.double()
    for k in (0, 17, 39):
        others = [j for j in range(40) if j != k]
        needed = torch.quantile(logits[:, others] - logits[:, [k]], 0.99, dim=0)
        directions = (weight[k] - weight[others]).double()
        expected = _least_distance(directions.numpy(), needed.numpy())
        assert found[k].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_class_that_no_shift_leads_to_is_infinitely_far():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # class 2 is the mean of the first two
    found = minimum_norm_shifts(torch.randn(30, 2), weight, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert found.isinf().all(1).tolist() == [False, False, True, False]


def test_augmentation_bias_is_the_probability_that_other_classes_lose_to_a_class(backdoored):
    victim, batch = backdoored.victim, backdoored.score
    images = ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))
    bias = augmentation_bias(victim, images, 5)
    pixels, labels = augmented(images.pixels(), AUGMENTATIONS, 5), images.labels.tolist() * AUGMENTATIONS
    with torch.no_grad():
        chance = victim.logits(pixels).softmax(1)
    for k in range(4):
        by_hand = [float(chance[row, k]) for row, label in enumerate(labels) if label != k]
        assert float(bias[k]) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
