"""The embedded example: Fashion-MNIST images that travel with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

from onp.data import ImageSet, load_images


def _images(name: str) -> ImageSet:
    with as_file(files(__name__).joinpath(name)) as path:
        return load_images(path)


def clean_images() -> ImageSet:
    """500 images `[500, 1, 28, 28]`, 50 a class, for the defence."""
    return _images("clean.npz")


def eval_images() -> ImageSet:
    """2,000 other images `[2000, 1, 28, 28]`, 200 a class, for measuring only."""
    return _images("eval.npz")
