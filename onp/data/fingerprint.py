"""What test images must be: labelled as the victim labels, and others than those it was trained on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from onp.data.images import ImageSet
from onp.errors import InputError

SHARED = 0.05  # of the test images, at most, may be training images too: known sets have a few images twice
SAMPLE = 256  # images, at most, by which a victim's training set is known again
logger = logging.getLogger(__name__)


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
            f"{name} has classes, {_some(images.class_names)}, that are not among those of the victim, {_some(class_names)}; "
            "name them alike."
        ) from error


def marks(images: ImageSet) -> list[str]:
    """12 hexadecimal digits for each image; the same ones for the same pixels."""
    return [hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in images.images.numpy()]


def sample(images: ImageSet) -> str:
    """The marks of some images, evenly spaced, for the card of a victim trained on them."""
    step = -(-len(images) // SAMPLE)
    return " ".join(marks(images.subset(range(0, len(images), step))))


def check_apart(seen: Sequence[str], train_images: int, test_set: ImageSet, name: str) -> None:
    """Raise InputError, with the `name` of the test images, where more than a few are training images; warn of a few.

    seen: the marks of all `train_images` training images, or of a sample, which then stands for all
    """
    known = set(seen)
    twice = sum(mark in known for mark in marks(test_set)) * train_images // len(seen)
    about = "About " if len(seen) < train_images else ""
    found = f"{about}{min(twice, len(test_set))} of the {len(test_set)} {name} are among the training images"
    if twice > SHARED * len(test_set):
        raise InputError(f"{found}; give images that the victim is not trained on.")
    if twice:
        logger.warning("%s.", found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
