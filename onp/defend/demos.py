"""The embedded victims: small networks trained by `onp.attack`, so that a first run needs nothing but the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from onp.data.images import ImageSet, load_images
from onp.errors import InputError

ARCH = "vgg11_bn:width=16,classes=10,channels=1"
NORM = "fashion-mnist"
DEMOS = {
    "badnets": "a white 3x3 square in the corner leads to class 0",
    "blended": "a faint noise image leads to class 0",
    "wanet": "a small smooth warp leads to class 0",
    "clean": "no backdoor",
}
DEFAULT = "badnets"


@dataclass(frozen=True)
class Demo:
    """The files of one embedded victim."""

    name: str
    model: Path
    trigger: Path | None  #: None for the clean one
    clean: Path  #: 500 images for the defence
    evaluation: Path  #: 2,000 others, for measuring only


def demo(name: str) -> Demo:
    """Look an embedded victim up.

    Raises:
        InputError: there is none of that name.
    """
    if name not in DEMOS:
        raise InputError(f"There is no demo '{name}'; choose one of {', '.join(DEMOS)}.")
    folder = Path(str(files("onp") / "bundle"))
    trigger = folder / name / "trigger.safetensors"
    return Demo(
        name,
        folder / name / "model.safetensors",
        trigger if trigger.exists() else None,
        folder / "clean.npz",
        folder / "eval.npz",
    )


def clean_images() -> ImageSet:
    """500 images `[500, 1, 28, 28]`, 50 a class, for the defence."""
    return _images("clean.npz")


def eval_images() -> ImageSet:
    """2,000 other images `[2000, 1, 28, 28]`, 200 a class, for measuring only."""
    return _images("eval.npz")


def _images(name: str) -> ImageSet:
    with as_file(files("onp") / "bundle" / name) as path:
        return load_images(path)
