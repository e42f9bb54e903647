"""Images in memory: the set itself, and the seeded split of the clean images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onp.data.decode import Form
from onp.data.load import read
from onp.errors import InputError

MINIMUM_IMAGES = 20  #: that a set needs, clean or triggered


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 `[N, C, H, W]`, labels int64 `[N]` (all -1 where unlabelled) and the names of the classes."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def labelled(self) -> bool:
        return bool((self.labels >= 0).all())

    def name(self, label: int) -> str:
        """The name of a class, or its number where the network knows more classes than are named here."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def pixels(self) -> Tensor:
        """The images as float32 `[N, C, H, W]` in [0, 1]."""
        return self.images.float() / 255

    def subset(self, index: Tensor | Sequence[int]) -> ImageSet:
        """The images at `index` (int64 positions or a bool mask), in that order."""
        index = torch.as_tensor(index)
        # An empty list would become a float tensor, which cannot index.
        index = index.long() if index.numel() == 0 else index
        return ImageSet(self.images[index], self.labels[index], self.class_names)

    def with_channels(self, channels: int) -> ImageSet:
        """Grey images as the three equal channels of RGB, or the one channel of RGB images that are grey.

        Raises InputError where that would lose colour.
        """
        if channels == 1 and not bool((self.images == self.images[:, :1]).all()):
            raise InputError("The images are in colour, but the network takes grey ones (1 channel); convert them first.")
        images = self.images[:, :1].expand(-1, channels, -1, -1).contiguous()
        return ImageSet(images, self.labels, self.class_names)

    def by_number(self, classes: int) -> ImageSet:
        """The same images with class names that are different numbers below `classes` taken for the model's classes."""
        numbers = [int(name) for name in self.class_names if name.isdecimal()]
        if not self.labelled or len(set(numbers)) < len(self.class_names) or max(numbers) >= classes:
            return self
        return ImageSet(self.images, torch.tensor(numbers)[self.labels], tuple(map(str, range(classes))))

    def relabelled(self, class_names: Sequence[str]) -> ImageSet:
        """The same images with labels counted in `class_names`: needed where this set lacks some class, since
        a folder's labels count only the classes it holds. Names that are numbers ("0", "7", ...) count the model's
        classes. Raises InputError for a class that is not among `class_names`.
        """
        known = {name: label for label, name in enumerate(class_names)}
        nameless = tuple(str(label) for label in range(len(self.class_names)))
        counted = self.class_names == nameless and not known.keys() >= set(nameless)
        if not self.labelled or counted or self.class_names == tuple(class_names):
            return self
        if not any(name in known for name in self.class_names):
            known = {str(label): label for label in range(len(class_names))}
        unknown = [name for name in self.class_names if name not in known]
        if unknown:
            raise InputError(f"The class {unknown[0]!r} is not among the classes of the clean data.")
        position = torch.tensor([known[name] for name in self.class_names])
        return ImageSet(self.images, position[self.labels], tuple(class_names))


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of the clean images: for building triggers and features, for scoring masks, for the report."""

    build: ImageSet
    score: ImageSet
    holdout: ImageSet


def load_images(
    path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    labelled: bool = True,
) -> ImageSet:
    """Load a whole image set into memory.

    `path` is one of
      - a folder, or a tar (plain, gz, xz, bz2) read without unpacking, with one sub-folder per class; labels count
        the class names in sorted order, as torchvision's ImageFolder does; or with a `metadata.csv` or `.jsonl` that gives
        each `file_name` a `label`;
      - `.npz` with `images` (or `x`, `data`) and `labels` (or `y`): uint8 or floats in [0, 1], `[N, H, W]`,
        `[N, H, W, C]` or `[N, C, H, W]`, and optionally `class_names`;
      - CIFAR-10/100 batches, python or binary: folder, archive or one batch file. Of a folder or archive the training
        batches are taken, `::test` asks for the test batch;
      - parquet shards, or the folder of `save_to_disk` of Hugging Face datasets (needs pyarrow): a column of images and
        one of classes; `::test` picks a split;
      - an IDX images file (plain or gz) whose labels file lies beside it under the usual name.
    `PATH::FOLDER` takes only that folder of a folder or archive, e.g. `cifar.tar.xz::train`.

    `size` (H and W in pixels, one number for squares) scales until the image covers it, antialiased bilinear, and
    crops the centre; without it all images must have one size. `channels` 1 or 3 converts to grayscale or RGB;
    without it the files decide, and a mixture becomes RGB. `labelled=False` also takes images without classes and
    gives them label -1.

    Raises InputError for anything missing, damaged, unlabelled or of no known format.
    """
    raw = read(os.fspath(path), Form((size, size) if isinstance(size, int) else size, channels, labelled))
    return ImageSet(torch.from_numpy(raw.images), torch.from_numpy(raw.labels), raw.class_names)


def check_for(images: ImageSet, classes: int, input_shape: tuple[int, int, int]) -> None:
    """Raise InputError unless a model of `classes` classes and input `(C, H, W)` can be repaired with `images`."""
    if len(images) < MINIMUM_IMAGES:
        raise InputError(f"The data holds {len(images)} images; at least {MINIMUM_IMAGES} are needed.")
    shape = tuple(images.images.shape[1:])
    if shape[0] != input_shape[0]:
        raise InputError(f"The images have {shape[0]} channels but the model takes {input_shape[0]}.")
    if shape != tuple(input_shape):
        raise InputError(
            f"The images are {shape[1]}x{shape[2]} pixels but the model takes {input_shape[1]}x{input_shape[2]}; "
            "give --image-size to resize them."
        )
    if not images.labelled:
        return
    highest = int(images.labels.max())
    if highest >= classes:
        raise InputError(f"The data has label {highest} but the model has only the classes 0 to {classes - 1}.")
    if images.labels.unique().numel() < 2:
        raise InputError("All images of the data are of one class; at least two classes are needed.")


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Two image sets of the same classes as one."""
    images, labels = torch.cat((first.images, second.images)), torch.cat((first.labels, second.labels))
    return ImageSet(images, labels, first.class_names)


def split(images: ImageSet, seed: int, fractions: tuple[float, float, float] = (0.3, 0.3, 0.4)) -> Splits:
    """Split into disjoint parts by class, the same for the same images and seed whatever order the images are given in.

    A hash of each image and the seed decides which part it lands in and where it stands there, so that all that is drawn by
    position later follows the content too. The number of a class does not matter. Equal images of a class stand side by side.

    A class with at least 3 images is present in every part. What rounding takes from a part in one class it is given back in
    the next, so that the parts keep their sizes with many small classes.

    Args:
        images: labels may be -1, which then is one class.
        seed: of the hash.
        fractions: sizes of the parts; above 0, of sum 1.

    Raises:
        InputError: the fractions are none.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"The fractions {fractions} of the split must be above 0 and sum to 1.")
    key = hashlib.sha256(str(seed).encode()).digest()
    digests = [hashlib.blake2b(image.tobytes(), key=key, digest_size=16).digest() for image in images.images.cpu().numpy()]
    labels = images.labels.tolist()
    # Labels come last: they only order equal images of different classes.
    order = sorted(range(len(labels)), key=lambda index: (digests[index], labels[index]))
    members: dict[int, list[int]] = {}  # classes in the order of their first image
    for index in order:
        members.setdefault(labels[index], []).append(index)
    owed = [0.0, 0.0, 0.0]
    part_of = [0] * len(labels)
    for of_class in members.values():
        owed = [rest + fraction * len(of_class) for rest, fraction in zip(owed, fractions, strict=True)]
        counts = [1 if len(of_class) >= 3 else 0] * 3
        for _ in range(len(of_class) - sum(counts)):
            counts[max(range(3), key=lambda part: owed[part] - counts[part])] += 1
        owed = [rest - count for rest, count in zip(owed, counts, strict=True)]
        parts = [part for part, count in enumerate(counts) for _ in range(count)]
        for index, part in zip(of_class, parts, strict=True):
            part_of[index] = part
    return Splits(*(images.subset([index for index in order if part_of[index] == part]) for part in range(3)))


def labelled_as(images: ImageSet, class_names: Sequence[str], name: str) -> ImageSet:
    """`images` with the labels of a victim trained on `class_names`; as they are where no names are known.

    Raises InputError, with the `name` of the images, for a class that the victim does not know.
    """
    numbers = all(each.isdecimal() for each in class_names)
    named = not any(each.isdecimal() for each in images.class_names)
    if not class_names or (numbers and named and len(class_names) == len(images.class_names)):
        return images  # numbers and names cannot be matched, but as many of each are counted alike
    try:
        return images.relabelled(class_names)
    except InputError as error:
        raise InputError(
            f"{name} has classes, {_first(images.class_names)}, that are not among those of the victim, {_first(class_names)}; "
            "name them alike."
        ) from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
