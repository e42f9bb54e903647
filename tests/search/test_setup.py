"""What a search is given: images that masks are scored on, augmented ones, features, and the graph."""

from dataclasses import replace

import pytest
import torch
from helpers.small_backdoor import CLASSES, Stamp, clean_images, stamp

from onp.data.images import ImageSet, joined, split
from onp.detect.bank import Surrogate, TriggerBank
from onp.detect.bn_statistics import bn_statistics
from onp.detect.known_trigger import KnownTrigger
from onp.engine.metrics import predictions
from onp.engine.scoring import TriggeredBatch
from onp.search.agent import AgentConfig, PolicyConfig
from onp.search.neuron_graph import build_graph
from onp.search.setup import LEAST_OF_FAMILY, SearchConfig, SearchRun, build_env, fewer, target_batches

INVERTED = TriggerBank((Surrogate("patch", 0, 1.0, 1.0, 0.0, None, stamp),), (1.0,), 0)


def images_of(batch) -> ImageSet:
    """The images of a batch; this victim's normalisation is none."""
    return ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, CLASSES)


def test_augmented_images_of_the_target_that_the_network_gets_wrong_are_left_out(backdoored):
    images = images_of(backdoored.score)
    members = images.labels == 2
    # Images of another class stand for members that the network gets wrong however they are changed.
    spoilt = ImageSet(images.images, torch.where(images.labels == 1, 2, images.labels), CLASSES)
    (found,) = target_batches(backdoored.victim, spoilt, 2, SearchRun(SearchConfig(target_augmentations=5)))
    assert 2.5 * int(members.sum()) < len(found.images) <= 5 * int(members.sum()) + 12
    assert bool((found.labels == 2).all()) and torch.equal(predictions(backdoored.victim.model, found.images), found.labels)


def test_no_batch_where_every_augmented_image_is_wrong_or_there_is_none(backdoored):
    images = images_of(backdoored.score)
    first = images.subset(predictions(backdoored.victim.model, backdoored.score.images) == 1)
    relabelled = ImageSet(first.images, torch.full_like(first.labels, 3), CLASSES)
    run = SearchRun(SearchConfig(target_augmentations=1))
    assert target_batches(backdoored.victim, relabelled.subset([0]), 3, run) == []
    assert target_batches(backdoored.victim, first, 2, run) == []


@pytest.mark.parametrize("bank", [INVERTED, KnownTrigger(Stamp(), 0)])
def test_masks_are_scored_on_images_that_no_trigger_was_inverted_on(backdoored, bank):
    splits = split(clean_images(), 0)
    evaluator = build_env(backdoored.victim, splits, bank, None, SearchRun()).env.evaluator
    scores = evaluator.score(torch.ones(1, backdoored.victim.units, dtype=torch.bool))
    scored = splits.score if bank is INVERTED else joined(splits.build, splits.score)
    others = scored.subset(scored.labels != 0)
    expected = int((predictions(backdoored.victim.model, stamp(others.pixels())) == 0).sum())
    assert int(scores.asr_count) == expected and float(scores.asr) == pytest.approx(expected / len(others))
    assert float(scores.acc) * (len(splits.build) + len(splits.score)) == pytest.approx(int(scores.acc_count))
    assert scores.agreement.shape == (1, 1) and bool((scores.agreement == 1).all())


def test_masks_are_scored_on_as_many_triggered_images_of_each_family_and_on_none_that_does_not_count():
    labels = torch.arange(400) % 4
    images = torch.arange(400.0)[:, None, None, None].expand(-1, 1, 2, 2)
    batches = [TriggeredBatch(name, images, labels, torch.zeros_like(labels)) for name in ("a", "b", "c")]
    for most, each in ((240, 80), (2, LEAST_OF_FAMILY), (3000, 300)):
        for batch in fewer(batches, most):
            assert torch.equal(batch.images[:, 0, 0, 0], torch.arange(400.0)[labels != 0][:each])
            assert torch.equal(batch.labels, labels[labels != 0][:each]) and not batch.target.any()
            assert len(batch.target) == each and batch.family in "abc"
    assert fewer([], 240) == []


def test_the_graph_has_the_relations_that_the_policy_is_configured_with(backdoored):
    splits = split(clean_images(), 0)
    for relations in (("similar",), (), ("feeds", "tied")):
        config = SearchConfig(AgentConfig(policy=PolicyConfig(relations=relations)))
        graph = build_env(backdoored.victim, splits, INVERTED, None, SearchRun(config)).graph
        expected = build_graph(backdoored.victim, relations)
        assert torch.equal(graph.indices, expected.indices) and torch.equal(graph.weight, expected.weight)


def test_a_bn_shift_towards_another_class_is_not_used(backdoored):
    """The trigger of class 0 left its mark in the batch norms; a bank for another class finds no backdoor neurons there."""
    splits = split(clean_images(), 0)
    bn = bn_statistics(backdoored.victim, joined(splits.build, splits.score))
    keep = torch.ones(2, backdoored.victim.units, dtype=torch.bool)
    for target, used in ((0, True), (1, False)):
        surrogate = replace(INVERTED.surrogates[0], target=target)
        bank = TriggerBank((surrogate,), (1.0,), target)
        problem = build_env(backdoored.victim, splits, bank, bn, SearchRun())
        plain = build_env(backdoored.victim, splits, bank, None, SearchRun())
        difference = plain.env.evaluate(keep).phi - problem.env.evaluate(keep).phi
        assert bool((difference > 0.01).all()) is used
        assert problem.features.column("bn_shift").any() and not plain.features.column("bn_shift").any()
