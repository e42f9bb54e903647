"""Drawn shapes and textures: 20 classes in any colours, sizes and angles on a smooth ground, 32x32 in colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from onp.data.images import ImageSet

SIZE = 32
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed: above 0 inside, from coordinates x and y, about 1 at the edge of the shape."""


def _polygon(corners: int) -> Field:
    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.arctan2(y, x)
        sector = 2 * np.pi / corners
        return 1 - np.hypot(x, y) * np.cos((angle % sector) - sector / 2) / np.cos(sector / 2) * 1.15

    return inside


def _star(points: int, depth: float) -> Field:
    return lambda x, y: 1 - np.hypot(x, y) * (1 + depth * np.cos(points * np.arctan2(y, x)))


SHAPES: dict[str, Field] = {
    "disc": lambda x, y: 1 - np.hypot(x, y),
    "ring": lambda x, y: 0.3 - np.abs(np.hypot(x, y) - 0.8),
    "ellipse": lambda x, y: 1 - np.hypot(x, 2.2 * y),
    "bar": lambda x, y: np.minimum(1.1 - np.abs(x), 0.28 - np.abs(y)),
    "cross": lambda x, y: np.maximum(np.minimum(1 - np.abs(x), 0.3 - np.abs(y)), np.minimum(1 - np.abs(y), 0.3 - np.abs(x))),
    "triangle": _polygon(3),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "star4": _star(4, 0.45),
    "star5": _star(5, 0.4),
    "star7": _star(7, 0.4),
    "crescent": lambda x, y: np.minimum(1 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.75),
    "half": lambda x, y: np.minimum(1 - np.hypot(x, y), y),
    "two": lambda x, y: 0.42 - np.minimum(np.hypot(x - 0.6, y), np.hypot(x + 0.6, y)),
    "three": lambda x, y: (
        0.38 - np.minimum(np.minimum(np.hypot(x - 0.65, y - 0.4), np.hypot(x + 0.65, y - 0.4)), np.hypot(x, y + 0.7))
    ),
    "frame": lambda x, y: 0.22 - np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.75),
    "stripes": lambda x, y: np.minimum(1.1 - np.hypot(x, y), np.cos(7 * x)),
    "checker": lambda x, y: np.minimum(1.1 - np.hypot(x, y), np.cos(5 * x) * np.cos(5 * y)),
    "wave": lambda x, y: np.minimum(1.1 - np.abs(x), 0.25 - np.abs(y - 0.5 * np.sin(4 * x))),
    "letter_l": lambda x, y: np.maximum(
        np.minimum(0.25 - np.abs(x + 0.6), 0.9 - np.abs(y)), np.minimum(0.75 - np.abs(x + 0.05), 0.25 - np.abs(y - 0.65))
    ),
}


def shapes(count: int, seed: int) -> ImageSet:
    """Draw images of shapes, as many of each.

    Args:
        count: images.
        seed: of the draws.
    """
    rng = np.random.default_rng((seed, 102))
    labels = np.arange(count) % len(SHAPES)
    fields = list(SHAPES.values())
    images = np.stack([_image(fields[label], rng) for label in labels])
    order = rng.permutation(count)
    return ImageSet(torch.from_numpy(images[order]), torch.from_numpy(labels[order]), tuple(SHAPES))


def _image(field: Field, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[3, SIZE, SIZE]`."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle, size = rng.normal(0, 0.4), rng.uniform(0.4, 0.75)
    x, y = x - rng.uniform(-0.25, 0.25), y - rng.uniform(-0.25, 0.25)
    turned = (np.cos(angle) * x + np.sin(angle) * y) / size, (np.cos(angle) * y - np.sin(angle) * x) / size
    alpha = 1 / (1 + np.exp(-field(*turned) * 16))
    ground, ink = rng.uniform(0, 1, (3, 1, 1)), rng.uniform(0, 1, (3, 1, 1))
    while np.abs(ground - ink).max() < 0.35:
        ink = rng.uniform(0, 1, (3, 1, 1))
    slope = rng.normal(0, 0.12, (2, 3, 1, 1))
    phase, waves = rng.uniform(0, 6, 2), rng.uniform(1, 6, 2)
    texture = 0.08 * np.sin(waves[0] * x + phase[0]) * np.sin(waves[1] * y + phase[1])
    picture = ground + slope[0] * x + slope[1] * y + texture
    picture = picture + alpha * (ink - picture) + rng.normal(0, 0.05, (3, SIZE, SIZE))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)
