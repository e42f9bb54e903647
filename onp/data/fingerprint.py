"""What an image set holds as a few hexadecimal digits, and whether test images are training images too."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from onp.data.images import ImageSet
from onp.errors import InputError

SHARED = 0.05  # of the test images, at most, may be training images too: known sets have a few images twice
SAMPLE = 256  # images, at most, whose hashes stand for a training set
logger = logging.getLogger(__name__)


def fingerprint(images: ImageSet) -> str:
    """16 hexadecimal digits of what an image set holds: pixels, labels and the names of its classes."""
    content = hashlib.sha256(repr((tuple(images.images.shape), images.class_names)).encode())
    content.update(images.images.contiguous().numpy().tobytes())
    content.update(images.labels.numpy().tobytes())
    return content.hexdigest()[:16]


def image_hashes(images: ImageSet) -> list[str]:
    """12 hexadecimal digits for each image; the same ones for the same pixels."""
    return [hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in images.images.numpy()]


def hash_sample(images: ImageSet) -> list[str]:
    """The hashes of at most `SAMPLE` images, evenly spaced, which lie beside a victim trained on them."""
    step = -(-len(images) // SAMPLE)
    return image_hashes(images.subset(range(0, len(images), step)))


def check_overlap(seen: Sequence[str], train_images: int, test_set: ImageSet, name: str) -> None:
    """Refuse test images that overlap with the training images, and warn where a few do.

    Args:
        seen: hashes of all training images, or of a sample, which then stands for all.
        train_images: number of training images.
        test_set: the test images.
        name: what a message calls them.

    Raises:
        InputError: more than `SHARED` of the test images are training images.
    """
    known = set(seen)
    twice = sum(each in known for each in image_hashes(test_set)) * train_images // len(seen)
    about = "About " if len(seen) < train_images else ""
    found = f"{about}{min(twice, len(test_set))} of the {len(test_set)} {name} are among the training images"
    if twice > SHARED * len(test_set):
        raise InputError(f"{found}; give images that the victim is not trained on.")
    if twice:
        logger.warning("%s.", found)
