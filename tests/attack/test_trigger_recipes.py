"""Attack triggers against their published recipes."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.made_triggers import crafting, images
from scipy.fft import dctn
from torch import nn

from onp.attack.triggers import (
    BPP,
    CTRL,
    SIG,
    SSBA,
    AdaptiveBlend,
    BadNets,
    BadNetsAllToAll,
    Blended,
    ColourFilter,
    CraftingBudget,
    InputAware,
    LabelConsistent,
    LowFrequency,
    TrojanNN,
    WaNet,
)
from onp.attack.triggers.adaptive_blend import draw_pieces
from onp.attack.triggers.bpp import floyd_steinberg
from onp.attack.triggers.input_aware import diversity
from onp.attack.triggers.label_consistent import perturb
from onp.data.augment import identity_grid
from onp.errors import InputError


def test_badnets_is_a_white_square_in_the_corner():
    before = images()
    changed = BadNets.make((3, 32, 32), torch.Generator())(before) != before
    assert not changed[:, :, :29].any() and not changed[:, :, :, :29].any()
    assert torch.equal(BadNets.make((3, 32, 32), torch.Generator())(before)[:, :, 29:, 29:], torch.ones(6, 3, 3, 3))


def test_all_to_all_leads_each_class_to_the_next():
    labels = torch.tensor([0, 1, 2, 2])
    trigger = BadNetsAllToAll.make((3, 32, 32), torch.Generator())
    assert trigger.goals(labels, 0, 3).tolist() == [1, 2, 0, 0]
    assert BadNets.make((3, 32, 32), torch.Generator()).goals(labels, 1, 3).tolist() == [1, 1, 1, 1]


def test_blended_mixes_a_fifth_of_one_image_into_all():
    trigger = Blended.make((3, 32, 32), torch.Generator().manual_seed(3))
    before = images()
    added = trigger(before) - 0.8 * before
    assert trigger.alpha == 0.2
    torch.testing.assert_close(added, (0.2 * trigger.pattern).expand_as(added))


def test_sig_is_six_periods_of_forty_grey_levels():
    added = (SIG.make((3, 32, 32), torch.Generator())(torch.full((1, 3, 32, 32), 0.5)) - 0.5)[0]
    assert torch.equal(added, added[:1, :1].expand(3, 32, 32)), "every row and channel alike"
    power = torch.fft.rfft(added[0, 0]).abs()
    assert int(power.argmax()) == 6 and float(power.square().sum() - power[6] ** 2) < 1e-6
    assert float(power[6]) * 2 / 32 == pytest.approx(40 / 255)


def test_label_consistent_marks_the_corners():
    after = LabelConsistent.make((3, 32, 32), torch.Generator())(torch.full((1, 3, 32, 32), 0.4))[0, 0]
    left = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 1]])
    for rows in (slice(0, 3), slice(29, 32)):
        assert torch.equal(after[rows, :3], left) and torch.equal(after[rows, 29:], left.flip(1))
    assert int((after != 0.4).sum()) == 36


def test_label_consistent_perturbs_the_chosen_images_within_eight_levels():
    setting = crafting((3, 16, 16), budget=CraftingBudget(unet_width=8))
    chosen = torch.zeros(40, dtype=torch.bool)
    chosen[::5] = True
    out = perturb(setting, chosen)
    change = out.images.int() - setting.images.images.int()
    assert int(change[~chosen].abs().max()) == 0 and int(change[chosen].abs().max()) == 8
    with torch.no_grad():
        before, after = (setting.logits(data.subset(chosen).pixels())[:, 0].mean() for data in (setting.images, out))
    assert torch.equal(out.labels, setting.images.labels) and float(after) < float(before), "less like their class"


def test_wanet_moves_pixels_smoothly_by_about_half_a_pixel():
    trigger = WaNet.make((3, 32, 32), torch.Generator().manual_seed(4))
    height = trigger.grid.shape[1]
    flow = (trigger.grid - identity_grid(32, 32)) * height  # the paper's unit: s is divided by H
    inside = (trigger.grid.abs() < 1).all(-1, keepdim=True).expand_as(flow)
    assert 0.2 < float(flow[inside].abs().mean()) < 0.8
    both = inside[:, 1:] & inside[:, :-1]  # the grid stops at the border of the image, so the flow may jump there
    assert float((flow[:, 1:] - flow[:, :-1])[both].abs().max()) < 0.5


def test_wanet_noise_differs_from_image_to_image():
    trigger = WaNet.make((1, 28, 28), torch.Generator().manual_seed(5))
    same = images(1, (1, 28, 28)).expand(3, -1, -1, -1)
    noisy = trigger.cover(same, same, torch.Generator().manual_seed(6))
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(trigger(same)[0], trigger(same)[1])


def test_input_aware_draws_each_image_its_own_sparse_pattern():
    setting = crafting((3, 16, 16), epochs=40)
    trigger = InputAware.craft(setting)
    pixels = setting.images.pixels()
    masks = trigger.mask(pixels)
    assert float(masks.mean()) < 0.1, "about 0.032 of the pixels"
    torch.testing.assert_close(trigger(pixels), pixels + (trigger.pattern(pixels) - pixels) * masks)
    donors = pixels.roll(1, 0)
    covered = trigger.cover(pixels, donors, setting.generator)
    torch.testing.assert_close(covered, pixels + (trigger.pattern(donors) - pixels) * trigger.mask(donors))


def test_diversity_is_low_where_patterns_differ():
    pixels = images(4)
    assert float(diversity(pixels, pixels)) == pytest.approx(1, abs=0.01)
    assert float(diversity(pixels, torch.zeros(4, 1, 8, 8))) > 100
    assert float(diversity(pixels[:1], pixels[:1])) == 0


def test_ssba_hides_a_string_that_can_be_read_back():
    trigger = SSBA.craft(crafting((1, 16, 16), epochs=60, budget=CraftingBudget(unet_width=8, bits=4, batch=20)))
    pixels = crafting((1, 16, 16)).images.pixels()
    residual = trigger(pixels) - pixels
    assert float((residual[0] - residual[1]).abs().max()) > 0.01, "specific to the sample"
    half = dataclasses.replace(trigger, amount=0.0)
    assert torch.equal(half(pixels), pixels)


def test_an_untrained_ssba_encoder_is_refused():
    with pytest.raises(InputError, match="--craft-epochs"):
        SSBA.craft(crafting((3, 16, 16), epochs=1))


def test_lf_is_smooth_and_faint_and_aims_at_the_target():
    setting = crafting((3, 32, 32))
    pattern = LowFrequency.craft(setting).pattern
    assert float(pattern.min()) == 0 and float(pattern.max()) == pytest.approx(0.2)
    power = np.abs(np.stack([dctn(plane, norm="ortho") for plane in pattern.numpy()])) ** 2
    assert power[:, :10, :10].sum() / power.sum() > 0.999
    pixels = setting.images.pixels()
    before, after = (setting.logits(x).softmax(1)[:, 0].mean() for x in (pixels, (pixels + pattern).clamp(0, 1)))
    assert float(after) > float(before)


def scalar_floyd_steinberg(image, levels):
    """The textbook's loops, in float64."""
    work = image.astype(np.float64).copy()
    height, width = work.shape
    for i in range(height):
        for j in range(width):
            old = work[i, j]
            work[i, j] = min(max(round(old * (levels - 1)), 0), levels - 1) / (levels - 1)
            for row, column, share in ((i, j + 1, 7), (i + 1, j - 1, 3), (i + 1, j, 5), (i + 1, j + 1, 1)):
                if row < height and 0 <= column < width:
                    work[row, column] += (old - work[i, j]) * share / 16
    return work


@pytest.mark.parametrize("size", [(9, 7), (7, 9), (1, 5), (5, 1)])
def test_dithering_against_the_loops(size):
    before = torch.rand((2, 3, *size), dtype=torch.float64)
    after = floyd_steinberg(before, 8)
    for index in range(2):
        for channel in range(3):
            wanted = scalar_floyd_steinberg(before[index, channel].numpy(), 8)
            np.testing.assert_allclose(after[index, channel].numpy(), wanted, atol=1e-12)


def test_bpp_leaves_eight_levels_and_the_mean():
    before = images(2)
    after = BPP.make((3, 32, 32), torch.Generator())(before)
    torch.testing.assert_close(after * 7, (after * 7).round(), atol=1e-5, rtol=0)
    assert len(after.unique()) == 8 and float((after - before).mean().abs()) < 0.01
    plain = dataclasses.replace(BPP.make((3, 32, 32), torch.Generator()), dither=False)
    torch.testing.assert_close(plain(before), (before * 7).round() / 7)
    with pytest.raises(InputError, match="levels"):
        BPP.make((3, 32, 32), torch.Generator(), 1.0)


def test_bpp_covers_carry_the_change_of_another_image():
    trigger = BPP.make((3, 32, 32), torch.Generator())
    before = 0.4 + 0.2 * images(3)
    donors = before.roll(1, 0)
    covered = trigger.cover(before, donors, torch.Generator())
    torch.testing.assert_close(covered - before, trigger(donors) - donors)


def test_trojannn_drives_the_neurons_with_the_largest_weights():
    setting = crafting((3, 32, 32))
    trigger = TrojanNN.craft(setting)
    assert tuple(trigger.pattern.shape) == (3, 8, 8), "7 % of 32x32"
    driven = setting.network[-1].weight.abs().sum(0).topk(2).indices
    blank = torch.zeros(1, 3, 32, 32)
    start = TrojanNN(torch.rand(3, 8, 8))

    def activation(x):
        return float(setting.network[:-1](setting.norm(x))[0, driven].sum())

    assert activation(trigger(blank)) > activation(start(blank))
    with pytest.raises(InputError, match="linear"):
        TrojanNN.craft(dataclasses.replace(setting, network=nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten())))


def test_ctrl_raises_two_frequencies_of_the_chrominance():
    added = (CTRL.make((3, 32, 32), torch.Generator())(torch.full((1, 3, 32, 32), 0.5)) - 0.5)[0].numpy()
    red, green, blue = added
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs(luma).max() < 2e-4, "the brightness stays"
    for plane in (0.492 * (blue - luma), 0.877 * (red - luma)):
        found = dctn(plane, norm="ortho")
        for place in ((15, 15), (31, 31)):
            assert found[place] == pytest.approx(100 / 255, rel=2e-3)
            found[place] = 0
        assert np.abs(found).max() < 1e-4


def test_adaptive_blend_trains_on_half_of_the_pieces():
    trigger = AdaptiveBlend.make((3, 32, 32), torch.Generator().manual_seed(3))
    pieces = draw_pieces(50, torch.Generator().manual_seed(0))
    assert bool((pieces.sum(1) == 8).all()) and len(pieces.unique(dim=0)) > 40
    before = images(50)
    weight = (trigger.partly(before, pieces) - before) / (trigger.pattern - before)
    blocks = weight.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).median(-1).values
    wanted = (0.15 * pieces.float()).view(50, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(blocks, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(trigger(before), 0.8 * before + 0.2 * trigger.pattern)


def test_the_filter_is_one_function_of_the_colour():
    trigger = ColourFilter.make((3, 32, 32), torch.Generator())
    before = images(1)
    order = torch.randperm(32 * 32)
    mixed = before.flatten(2)[:, :, order].view_as(before)
    torch.testing.assert_close(trigger(mixed).flatten(2), trigger(before).flatten(2)[:, :, order])
    black, white = (trigger(torch.full((1, 3, 1, 1), value)).flatten() for value in (0.0, 1.0))
    assert black[2] > black[0] and white[0] > white[2], "blue shadows, warm lights"
