"""Mistakes that would end in a confident wrong answer: normalisation, order of the classes, size and labels of the images."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.defend.class_order import ClassOrder
from onp.defend.config import DefendConfig
from onp.defend.demos import ARCH, NORM, clean_images, demo
from onp.defend.inputs import read_case
from onp.defend.other_normalisation import better_normalisation, few_of, name_of, presets_for, spread
from onp.defend.run import Run
from onp.defend.sanity import Stated, check_expect_acc, check_useful, predicted_classes
from onp.errors import InputError
from onp.model.victim import load_victim, victim_from_module

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def victim():
    return load_victim(demo("badnets").model, ARCH, Normalisation.parse(NORM), (1, 28, 28))


@pytest.fixture(scope="module")
def images():
    every = clean_images()
    return every.subset(spread(every.labels)[:250])


def normalised(victim, norm):
    return dataclasses.replace(victim, normalisation=Normalisation.parse(norm))


def refused(victim, images, stated=Stated()):  # noqa: B008 (frozen)
    with pytest.raises(InputError) as error:
        check_useful(victim, images, stated)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def alphabetical(images):
    """As folders named by class are read: sorted; six of ten classes change their places."""
    names = sorted(images.class_names)
    labels = torch.tensor([names.index(name) for name in images.class_names])[images.labels]
    return ImageSet(images.images, labels, tuple(names))


def test_folders_in_alphabetical_order_are_refused_with_the_order(victim, images):
    message = refused(victim, alphabetical(images))
    assert re.search(r"on only 3\d % of the clean images .* but would be on 9\d % with the classes in another order", message)
    assert "Ankle boot is its class 9" in message and "and 3 more" in message
    assert f"--class-order '{','.join(images.class_names)}'" in message
    (doubt,) = check_useful(victim, alphabetical(images), Stated(order=True))
    assert "another order" in doubt


@pytest.mark.parametrize("norm", ["mnist", "half", "0.1/0.1"])
def test_another_normalisation_that_is_clearly_better_is_named(victim, images, norm):
    message = refused(normalised(victim, norm), images)
    assert re.search(
        rf"on only [57]\d % of the clean images with --norm {norm}, but would be on 9\d % with --norm fash", message
    )
    assert "or --expect-acc 0." in message
    (doubt,) = check_useful(normalised(victim, norm), images, Stated(expect_acc=0.5))
    assert "--norm fashion-mnist" in doubt


def test_near_normalisations_refuse_each_other_never(victim, images):
    assert check_useful(victim, images) == check_useful(normalised(victim, "0.3/0.4"), images) == ()
    # Of a colour network: the mean of the channels, normalised with the presets of CIFAR, which are close.
    colour = ImageSet(images.images.expand(-1, 3, -1, -1), images.labels, images.class_names)
    for norm in ("cifar10", "cifar100"):
        shape = dataclasses.replace(normalised(victim, norm), input_shape=(3, 28, 28), model=Grey(victim.model))
        found = better_normalisation(shape, colour, predicted_classes(shape, colour))
        assert found is None or found.preset not in ("cifar10", "cifar100", "imagenet", "gtsrb")


class Grey(torch.nn.Module):
    """A network of colour images that sees their brightness."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.mean(1, keepdim=True))


def test_both_mistakes_together_are_both_named(victim, images):
    message = refused(normalised(victim, "mnist"), alphabetical(images))
    assert "--norm fashion-mnist" in message and "--class-order 'T-shirt/top,Trouser" in message


def test_an_accuracy_below_the_expected_one_stops(victim, images):
    message = refused(victim, images, Stated(expect_acc=0.97))
    assert re.search(r"on 89\.6 % \[8.*\] of the 250 clean images, less than the 97 % of --expect-acc", message)
    assert all(option in message for option in ("--norm", "--image-size", "--class-order"))
    assert check_useful(victim, images, Stated(expect_acc=0.85)) == ()
    for share in (90, 0, -1, "0.9"):
        with pytest.raises(InputError, match=r"0\.9 for 90 %"):
            check_expect_acc(share)


def test_the_size_that_fits_is_named(victim, images):
    few = images.subset(range(60))
    pixels = F.interpolate(few.pixels(), (56, 56), mode="bilinear")
    large = ImageSet((pixels * 255).round().byte(), few.labels, few.class_names)
    message = refused(dataclasses.replace(victim, input_shape=(1, 56, 56)), large)
    assert "which are 56x56 pixels" in message and "give --image-size 28" in message


def test_a_network_of_one_size_says_which(victim):
    flat = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2), torch.nn.Flatten(), torch.nn.Linear(4 * 15 * 15, 3))
    with pytest.raises(InputError, match=r"does not take images of shape \(1, 28, 28\) .*; it takes 32x32 pixels"):
        victim_from_module(flat, Normalisation.parse("none"), (1, 28, 28))


def test_mixed_up_labels_and_images_of_something_else_differ(victim, images):
    few = images.subset(range(100))
    mixed = ImageSet(few.images, few.labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))], few.class_names)
    assert "the labels are mixed up" in refused(victim, mixed)
    noise = torch.randint(256, few.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    message = refused(victim, ImageSet(noise, few.labels, few.class_names))
    assert "no other known normalisation helps" in message and "for class" in message


def test_presets_and_their_names(victim):
    assert name_of(victim.normalisation) == NORM and name_of(Normalisation((0.1,), (0.2,))) == "0.1/0.2"
    assert set(presets_for(victim)) == {"mnist", "half", "none"}
    assert spread(torch.tensor([0, 0, 0, 1, 1, 2])).tolist() == [0, 3, 5, 1, 4, 2]
    assert ClassOrder((0, 2, 1)).moved == (1, 2)
    large = ImageSet(torch.zeros(40, 3, 224, 224, dtype=torch.uint8), torch.arange(40) % 4, tuple("abcd"))
    assert few_of(large, 8, 64, 2**18).tolist() == spread(large.labels)[:8].tolist()


def test_class_order_and_expected_accuracy_are_options(images, tmp_path, capsys):
    """Of images named by class in alphabetical order; a wrong order that is stated is used, with a warning."""
    named = alphabetical(images)
    np.savez(tmp_path / "a.npz", images=named.images, labels=named.labels, class_names=np.array(named.class_names))
    (tmp_path / "names.txt").write_text("\n".join(images.class_names))

    def read(order, expect_acc=None):
        model, data = str(demo("badnets").model), str(tmp_path / "a.npz")
        options = {"model": model, "arch": ARCH, "norm": NORM, "data": data, "class_order": order, "expect_acc": expect_acc}
        return read_case(Run.of(DefendConfig(**options)))

    case = read(str(tmp_path / "names.txt"))
    assert case.class_names == images.class_names and case.doubts == ()
    assert torch.equal(case.images.labels.bincount(), images.labels.bincount())
    with pytest.raises(InputError, match="less than the 99 % of --expect-acc"):
        read(",".join(images.class_names), 0.99)
    (doubt,) = read(",".join(named.class_names)).doubts
    assert "in another order" in doubt and f"Warning: {doubt}" in capsys.readouterr().err
    with pytest.raises(InputError, match="--expect-acc is a share"):
        read(None, 90)
