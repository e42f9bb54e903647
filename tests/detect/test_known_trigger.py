"""Known triggers as banks: one target, one batch, scored on all images that the search may see."""

import pytest
import torch
from helpers.small_backdoor import Stamp, clean_images, stamp

from onp.data.images import ImageSet, joined, split
from onp.detect.bank import Surrogate, TriggerBank
from onp.detect.known_trigger import KnownTrigger, known_triggered_images
from onp.errors import InputError


def test_a_known_trigger_is_scored_on_build_and_score_images_and_inverted_ones_on_score_images(backdoored):
    clean, victim = split(clean_images(), 0), backdoored.victim
    inverted = TriggerBank((Surrogate("patch", 0, 1.0, 1.0, 0.0, None, stamp),), (1.0,), 0)
    known = KnownTrigger(Stamp(), 0)
    (unseen,), (everything,) = (bank.batches(victim, bank.scoring_images(clean)) for bank in (inverted, known))
    others = [int((part.labels != 0).sum()) for part in (clean.build, clean.score)]
    assert (len(unseen.images), len(everything.images)) == (others[1], sum(others))
    assert torch.equal(everything.images[others[0] :], unseen.images)
    assert len(everything.labels) == len(everything.target) == sum(others)
    assert known.images(clean) is clean is inverted.images(clean)
    assert known.weights == (1.0,) and everything.family == "known"


def test_an_all_to_all_trigger_has_no_single_target():
    with pytest.raises(InputError, match="stamp leads every class to another one"):
        KnownTrigger(Stamp(all_to_all=True), 0)


def triggered(count=200):
    images = clean_images(count)
    images = images.subset(images.labels != 0)
    return ImageSet((stamp(images.pixels()) * 255).round().byte(), images.labels, images.class_names)


def test_triggered_images_are_split_like_clean_ones_and_replace_them(backdoored):
    clean, images = split(clean_images(), 0), triggered()
    bank = known_triggered_images(backdoored.victim, images, 1)
    assert bank.target == 0 and bank.images(clean) is bank.splits and bank.weights == (1.0,)
    scored = bank.scoring_images(clean)
    assert torch.equal(scored.images, joined(bank.splits.build, bank.splits.score).images)
    (batch,) = bank.batches(backdoored.victim, scored)
    assert torch.equal(batch.images, backdoored.victim.normalisation(scored.pixels()))
    assert torch.equal(batch.labels, scored.labels) and bool((batch.target == 0).all())
    held_out = bank.batches(backdoored.victim, bank.images(clean).holdout)[0]
    assert len(held_out.images) == len(images) - len(scored)


def test_unlabelled_triggered_images_all_count(backdoored):
    images = triggered()
    unlabelled = ImageSet(images.images, torch.full_like(images.labels, -1), images.class_names)
    bank = known_triggered_images(backdoored.victim, unlabelled, 1)
    assert len(bank.batches(backdoored.victim, bank.splits.build)[0].images) == len(bank.splits.build)


def test_triggered_images_that_name_no_target_are_refused(backdoored):
    images = triggered()
    with pytest.raises(InputError, match="There are 5 triggered images"):
        known_triggered_images(backdoored.victim, images.subset(range(5)), 0)
    clean = clean_images()
    with pytest.raises(InputError, match="give images whose trigger works"):
        known_triggered_images(backdoored.victim, clean, 0)
    of_target = ImageSet(images.images, torch.zeros_like(images.labels), images.class_names)
    with pytest.raises(InputError, match="labelled with the class that they lead to"):
        known_triggered_images(backdoored.victim, of_target, 0)
