"""What the search asks of a mask besides the surrogate triggers: changed copies of clean images stay right."""

from dataclasses import replace

import torch
from helpers.small_backdoor import clean_images, stamp

from onp.data.images import ImageSet, split
from onp.detect.bank import Surrogate, TriggerBank
from onp.detect.known_trigger import JUDGES, GivenImages
from onp.engine.metrics import predictions
from onp.search import setup as problem
from onp.search.env import VIEWS
from onp.search.setup import SearchConfig, changed_views, judging


def image_sets(batch):
    """The normalised images of a batch (this victim's normalisation is none) as two image sets."""
    images = (batch.images * 255).round().to(torch.uint8)
    names = ("a", "b", "c", "d")
    return ImageSet(images[:40], batch.labels[:40], names), ImageSet(images[40:], batch.labels[40:], names)


def test_copies_that_the_network_gets_wrong_are_left_out(backdoored):
    parts = image_sets(backdoored.score)
    # A wrong label stands for an image that the network gets wrong however it is changed.
    spoilt = ImageSet(parts[0].images, (parts[0].labels + 1) % 4, parts[0].class_names)
    config = SearchConfig(views=3, target_views=5)
    others, hit = changed_views(backdoored.victim, (spoilt, parts[1]), 2, config, 0)
    assert (others.family, hit.family) == VIEWS
    members = int((parts[1].labels == 2).sum())
    assert 1.5 * (60 - members) < len(others.images) <= 3 * (60 - members) + 12
    assert 2.5 * members < len(hit.images) <= 5 * members + 12
    assert bool((hit.target == 2).all()) and not bool((others.target == 2).any())
    for copies in (others, hit):
        assert torch.equal(predictions(backdoored.victim.model, copies.images), copies.target)
        assert bool((copies.labels == -1).all()), "an image of any class counts"


def test_no_batch_where_every_copy_is_wrong(backdoored, monkeypatch):
    monkeypatch.setattr(problem, "predictions", lambda model, images: torch.full((len(images),), -1))
    assert changed_views(backdoored.victim, image_sets(backdoored.score), 2, SearchConfig(), 0) == []


def test_a_given_trigger_is_judged_on_all_images_that_the_search_may_see(backdoored):
    clean = clean_images()
    splits = split(clean, 0)
    fitted = TriggerBank((Surrogate("patch", 0, 1.0, 1.0, 1.0, 0.0, None, stamp),), 0)
    given = replace(fitted, judges=JUDGES)
    (unseen,), (everything,) = (judging(backdoored.victim, splits, bank) for bank in (fitted, given))
    others = [int((part.labels != 0).sum()) for part in (splits.build, splits.score)]
    assert (len(unseen.images), len(everything.images)) == (others[1], sum(others))
    assert torch.equal(everything.images[others[0] :], unseen.images)
    assert len(everything.labels) == len(everything.target) == sum(others)
    images = GivenImages(split(clean.subset(clean.labels != 0), 1), 0)
    assert len(judging(backdoored.victim, splits, images)[0].images) == len(images.parts.build) + len(images.parts.score)
