"""Attack triggers against their published recipes."""

import pytest
import torch

from onp.errors import InputError
from onp.triggers import TRIGGERS, BadNets, Blended, WaNet, load_trigger
from onp.triggers.wanet import identity_grid


def images(n=6, shape=(3, 32, 32)):
    return torch.rand((n, *shape))


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 31, 33)])
def test_trigger_keeps_shape_and_range_and_its_input(name, shape):
    trigger = TRIGGERS[name].make(shape, torch.Generator().manual_seed(1))
    before = images(shape=shape)
    kept = before.clone()
    after = trigger(before)
    assert after.shape == before.shape and after.dtype == torch.float32
    assert float(after.min()) >= 0 and float(after.max()) <= 1
    assert torch.equal(before, kept) and not torch.equal(after, before)


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger_survives_its_file(name, tmp_path):
    trigger = TRIGGERS[name].make((3, 32, 32), torch.Generator().manual_seed(2))
    trigger.save(tmp_path / "trigger.safetensors")
    again = load_trigger(tmp_path / "trigger.safetensors")
    before = images()
    assert type(again) is type(trigger) and torch.equal(again(before), trigger(before))


def test_badnets_is_a_white_square_in_the_corner():
    before = images()
    changed = BadNets.make((3, 32, 32), torch.Generator())(before) != before
    assert not changed[:, :, :29].any() and not changed[:, :, :, :29].any()
    assert torch.equal(BadNets.make((3, 32, 32), torch.Generator())(before)[:, :, 29:, 29:], torch.ones(6, 3, 3, 3))


def test_blended_mixes_a_fifth_of_one_image_into_all():
    trigger = Blended.make((3, 32, 32), torch.Generator().manual_seed(3))
    before = images()
    added = trigger(before) - 0.8 * before
    assert trigger.alpha == 0.2
    torch.testing.assert_close(added, (0.2 * trigger.pattern).expand_as(added))


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
    noisy = trigger.noise(same, torch.Generator().manual_seed(6))
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(trigger(same)[0], trigger(same)[1])


@pytest.mark.parametrize("name", TRIGGERS)
def test_wrong_image_size_is_refused(name):
    trigger = TRIGGERS[name].make((3, 32, 32), torch.Generator().manual_seed(7))
    with pytest.raises(InputError, match="trigger"):
        trigger(images(2, (1, 2, 2)))


@pytest.mark.parametrize("content", [b"", b"not a trigger", b"\x00" * 64])
def test_a_file_that_is_no_trigger_is_refused(content, tmp_path):
    (tmp_path / "trigger.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"trigger\.safetensors"):
        load_trigger(tmp_path / "trigger.safetensors")


def test_a_missing_trigger_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trigger file"):
        load_trigger(tmp_path / "none.safetensors")
