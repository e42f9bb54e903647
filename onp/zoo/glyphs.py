"""Drawn characters: the digits and capital letters, turned and sheared, in any colours on a gradient, 28x28 in grey."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from onp.data.images import ImageSet

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIZE, LARGE = 28, 40  # pixels of an image, and of a character as it is drawn first
VARIANTS = 12  # of each character: sizes and stroke widths


def glyphs(count: int, seed: int) -> ImageSet:
    """Draw images of characters, as many of each.

    The font is the one that Pillow brings, so that all machines draw the same.

    Args:
        count: images.
        seed: of the draws.
    """
    rng = np.random.default_rng((seed, 101))
    labels = np.arange(count) % len(CHARACTERS)
    masks = [[_character(each, variant) for variant in range(VARIANTS)] for each in CHARACTERS]
    images = np.stack([_image(masks[label][rng.integers(VARIANTS)], rng) for label in labels])
    order = rng.permutation(count)
    return ImageSet(torch.from_numpy(images[order][:, None]), torch.from_numpy(labels[order]), tuple(CHARACTERS))


def _character(character: str, variant: int) -> Image.Image:
    """A character in white on black, in the middle."""
    canvas = Image.new("L", (LARGE, LARGE))
    font = ImageFont.load_default(22 + 2 * (variant % 6))
    drawing = ImageDraw.Draw(canvas)
    stroke = variant // 6
    left, top, right, bottom = drawing.textbbox((0, 0), character, font=font, stroke_width=stroke)
    place = ((LARGE - left - right) / 2, (LARGE - top - bottom) / 2)
    drawing.text(place, character, fill=255, font=font, stroke_width=stroke)
    return canvas


def _image(mask: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[SIZE, SIZE]`: the character turned, sheared and moved, between a dark and a bright grey, with noise."""
    angle, shear, scale = rng.normal(0, 0.15), rng.normal(0, 0.15), LARGE / SIZE * rng.uniform(0.75, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[1, shear], [0, 1]])
    offset = LARGE / 2 - matrix @ (np.full(2, SIZE / 2) + rng.uniform(-2, 2, 2))
    rows = np.column_stack((matrix, offset)).flatten()
    shape = mask.transform((SIZE, SIZE), Image.Transform.AFFINE, tuple(rows), Image.Resampling.BILINEAR)
    alpha = np.asarray(shape, dtype=np.float32) / 255
    ends = rng.uniform(0, 1, 3)
    ramp = np.linspace(-0.5, 0.5, SIZE)
    ground = 0.5 * ends[0] + 0.3 * (ends[1] - 0.5) * ramp[:, None] + 0.3 * (ends[2] - 0.5) * ramp
    ink = ground.mean() + rng.uniform(0.35, 0.6) * (1 if ground.mean() < 0.4 else -1 if ground.mean() > 0.6 else 1)
    grey = ground + alpha * (ink - ground) + rng.normal(0, 0.03, (SIZE, SIZE))
    return (grey.clip(0, 1) * 255).round().astype(np.uint8)
