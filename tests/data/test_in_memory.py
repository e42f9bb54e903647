"""Datasets and DataLoaders of a notebook as one image set."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from onp.data.in_memory import is_source, pairs_of
from onp.errors import InputError

PIXELS = torch.randint(256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Items(Dataset):
    """A Dataset whose items are made by a function of pixels and label."""

    def __init__(self, make, **attributes):
        self.make = make
        self.__dict__.update(attributes)

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, position):
        return self.make(PIXELS[position], int(LABELS[position]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(PIXELS, LABELS))


def picture(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


SOURCES = {
    "tensors": TensorDataset(PIXELS, LABELS),
    "floats": Items(lambda pixels, label: (pixels / 255, label)),
    "pictures": Items(lambda pixels, label: (picture(pixels), label)),
    "arrays": Items(lambda pixels, label: (pixels.permute(1, 2, 0).numpy(), np.int64(label))),
    "dicts": Items(lambda pixels, label: {"image": picture(pixels), "label": label}),
    "more than two": Items(lambda pixels, label: (pixels, torch.tensor(label), "path")),
    "batches": DataLoader(TensorDataset(PIXELS, LABELS), batch_size=4),
    "batches of dicts": DataLoader(Items(lambda pixels, label: {"pixel_values": pixels / 255, "labels": label}), 4),
    "a stream": Stream(),
    "a list": [(pixels, int(label)) for pixels, label in zip(PIXELS, LABELS, strict=True)],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_gives_the_same_images(kind):
    assert is_source(SOURCES[kind])
    images, labels, names = pairs_of(SOURCES[kind])
    assert torch.equal(images, PIXELS) and images.dtype == torch.uint8
    assert labels.tolist() == LABELS.tolist() and names is None


def test_grey_pictures_and_the_names_of_the_classes():
    grey = Items(lambda pixels, label: (picture(pixels).convert("L"), label), classes=["ant", "bee", "cat"])
    images, _, names = pairs_of(Subset(grey, [0, 1, 2]))
    assert images.shape == (3, 1, 5, 7) and names == ("ant", "bee", "cat")


def never(pixels, label):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Items(lambda pixels, label: pixels), r"gives Tensor; it must give \(image, label\)"),
        (Items(lambda pixels, label: {"x": pixels}), "gives dicts with x"),
        (Items(lambda pixels, label: (pixels / 255 - 0.5, label)), "before normalisation"),
        (Items(lambda pixels, label: (pixels[:, : 3 + label], label)), "different shapes"),
        (Items(never), "cannot be read from the Items .*the disk is gone"),
        (TensorDataset(PIXELS[:0], LABELS[:0]), "holds no images"),
        (DataLoader(TensorDataset(PIXELS, LABELS.expand(2, 6).T), batch_size=3), "6 labels for 3 images"),
        (Items(lambda pixels, label: (pixels, "cat")), "no numbers"),
    ],
)
def test_bad_sources_are_one_sentence(source, says):
    with pytest.raises(InputError, match=says) as refused:
        pairs_of(source)
    assert "\n" not in str(refused.value)


def test_what_is_no_source():
    assert not any(map(is_source, (PIXELS, PIXELS.numpy(), iter([]), 3, "images")))
