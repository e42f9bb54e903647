"""What all attack triggers have in common: shape, range, and the images they refuse."""

import pytest
import torch
from helpers.made_triggers import FITTED, images, trigger_for

from onp.attack.triggers import TRIGGERS
from onp.errors import InputError


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 31, 33)])
def test_trigger_keeps_shape_and_range_and_its_input(name, shape):
    trigger = trigger_for(name, shape)
    before = images(shape=shape)
    kept = before.clone()
    after = trigger(before)
    assert after.shape == before.shape and after.dtype == torch.float32
    assert float(after.min()) >= 0 and float(after.max()) <= 1
    assert torch.equal(before, kept) and not torch.equal(after, before)
    # A trigger is a map of one image: the others of the batch do not matter.
    torch.testing.assert_close(trigger(before[2:3]), after[2:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(FITTED))
def test_fitted_triggers_cannot_be_drawn(name):
    with pytest.raises(InputError, match="fitted"):
        TRIGGERS[name].make((3, 32, 32), torch.Generator())


@pytest.mark.parametrize("name", sorted(set(TRIGGERS) - {"bpp", "filter"}))
def test_wrong_image_size_is_refused(name):
    with pytest.raises(InputError, match="trigger"):
        trigger_for(name)(images(2, (1, 2, 2)))
