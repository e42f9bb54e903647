"""The data sets of a zoo."""

import numpy as np
import pytest
import torch

from onp.errors import InputError
from onp.zoo.datasets import DATASETS, available, drawn, files_of, images_of
from onp.zoo.glyphs import CHARACTERS, glyphs
from onp.zoo.shapes import SHAPES, shapes


@pytest.mark.parametrize(
    ("draw", "names", "shape"), [(glyphs, tuple(CHARACTERS), (1, 28, 28)), (shapes, tuple(SHAPES), (3, 32, 32))]
)
def test_drawn_images_are_repeatable_balanced_and_learnable(draw, names, shape):
    images = draw(4 * len(names), 5)
    again, other = draw(4 * len(names), 5), draw(4 * len(names), 6)
    assert torch.equal(images.images, again.images) and not torch.equal(images.images, other.images)
    assert images.images.dtype == torch.uint8 and images.images.shape[1:] == shape and images.class_names == names
    assert images.labels.bincount().tolist() == [4] * len(names)
    assert len(np.unique(images.images.flatten(1).numpy(), axis=0)) == len(images)


def test_the_sizes_in_the_table_are_those_of_the_drawn_images():
    for name in ("glyphs", "shapes"):
        data = DATASETS[name]
        assert data.draw is not None
        one = data.draw(data.classes, 0)
        assert len(one.class_names) == data.classes and one.images.shape[1] == data.channels


def test_a_choice_of_classes_is_counted_anew():
    some = images_of("shapes", "test", (1, 4, 7))
    assert some.class_names == tuple(list(SHAPES)[label] for label in (1, 4, 7))
    assert sorted(set(some.labels.tolist())) == [0, 1, 2]


def test_imbalance_keeps_fewer_of_some_classes():
    some = images_of("shapes", "test", tuple(range(10)))
    counts = drawn(some, len(some), 3, 0.2).labels.bincount()
    assert counts.max() == 300 and counts.min() == pytest.approx(60, abs=25)
    assert len(drawn(some, 50, 3)) == 50
    assert torch.equal(drawn(some, 50, 3).images, drawn(some, 50, 3).images)


def test_files_are_named_by_their_set():
    assert files_of(("cifar10=a.npz,b.npz",)) == {"cifar10": ("a.npz", "b.npz")}
    assert available({"gtsrb": ("a", "b")}) == ("gtsrb", "glyphs", "shapes")
    for wrong in ("cifar10", "cifar10=a", "shapes=a,b", "mnist=a,b"):
        with pytest.raises(InputError, match="NAME=TRAIN,TEST"):
            files_of((wrong,))
