"""Re-activation: what is trained on, and that a backdoor which is there comes back."""

import torch
from helpers.small_backdoor import backdoored, clean_images, pictures, stamp

from onp.compare.reactivation import POISONED, reactivated, with_poisoned


class Stamp:
    """The trigger of the small network, as `onp.attack.triggers.Trigger` has it."""

    def __call__(self, images):
        return stamp(images)

    def goals(self, labels, target, classes):
        return torch.full_like(labels, target)


def test_the_poisoned_images_carry_the_trigger_and_its_label():
    clean = clean_images()
    images = with_poisoned(clean, Stamp(), 0, 4)
    assert len(images) == len(clean) + POISONED and torch.equal(images.images[: len(clean)], clean.images)
    assert (images.labels[len(clean) :] == 0).all()
    chosen = (clean.labels != 0).nonzero()[:POISONED, 0]
    stamped = (stamp(clean.pixels()[chosen]) * 255).round().to(torch.uint8)
    assert torch.equal(images.images[len(clean) :], stamped)


def test_images_of_the_target_class_alone_cannot_be_poisoned():
    clean = clean_images()
    own = clean.subset(clean.labels == 0)
    assert len(with_poisoned(own, Stamp(), 0, 4)) == len(own)


def test_training_leaves_the_network_that_was_given_as_it_is():
    victim = backdoored().victim
    before = {key: value.clone() for key, value in victim.model.state_dict().items()}
    images, labels = pictures(200, torch.Generator().manual_seed(3))
    model = reactivated(victim, with_poisoned(clean_images(), Stamp(), 0, 4), 0)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in victim.model.state_dict().items())
    others = labels != 0
    with torch.no_grad():
        assert float((model(stamp(images[others])).argmax(1) == 0).float().mean()) > 0.5
