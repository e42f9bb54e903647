"""Randomly changed copies of clean images."""

import torch

from onp.data.augment import augmented


def test_copies_are_shifted_copies_in_range_and_repeat_with_the_seed():
    images = torch.rand(7, 3, 28, 31)
    out = augmented(images, 2, 5)
    assert out.shape == (14, 3, 28, 31) and bool(((out >= 0) & (out <= 1)).all())
    assert torch.equal(out, augmented(images, 2, 5)) and not torch.equal(out, augmented(images, 2, 6))
    assert not torch.equal(out[:7], images) and not torch.equal(out[:7], out[7:])


def test_a_bright_pixel_moves_by_at_most_two_pixels():
    images = torch.full((300, 1, 28, 28), 0.2)
    images[:, :, 14, 14] = 0.8
    out = augmented(images, 1, 0)
    rows, columns = out.amax((1, 3)).argmax(1), out.amax((1, 2)).argmax(1)
    assert set(rows.tolist()) == {12, 13, 14, 15, 16} == set(columns.tolist())
