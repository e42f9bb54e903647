"""What the search asks of a mask besides the surrogate triggers: changed copies of clean images stay right."""

import torch

from onp import search
from onp.data import ImageSet
from onp.metrics import predictions
from onp.search import changed_views
from onp.tally import TriggeredBatch


def image_sets(batch):
    """The normalised images of a batch (this victim's normalisation is none) as two image sets."""
    images = (batch.images * 255).round().to(torch.uint8)
    names = ("a", "b", "c", "d")
    return ImageSet(images[:40], batch.labels[:40], names), ImageSet(images[40:], batch.labels[40:], names)


def test_copies_that_the_network_gets_wrong_are_left_out(backdoored):
    parts = image_sets(backdoored.score)
    # A wrong label stands for an image that the network gets wrong however it is changed.
    spoilt = ImageSet(parts[0].images, (parts[0].labels + 1) % 4, parts[0].class_names)
    (copies,) = changed_views(backdoored.victim, (spoilt, parts[1]), 3, 0)
    assert isinstance(copies, TriggeredBatch) and 90 < len(copies.images) <= 3 * 60 + 12
    assert torch.equal(predictions(backdoored.victim.model, copies.images), copies.target)
    assert bool((copies.labels == -1).all()), "an image of any class counts"


def test_no_batch_where_every_copy_is_wrong(backdoored, monkeypatch):
    monkeypatch.setattr(search, "predictions", lambda model, images: torch.full((len(images),), -1))
    assert changed_views(backdoored.victim, image_sets(backdoored.score), 2, 0) == []
