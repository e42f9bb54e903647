"""What all attack triggers have in common: shape and range, their files, and what they refuse."""

import json

import pytest
import torch
from helpers.made_triggers import FITTED, images, trigger_for
from safetensors import safe_open
from safetensors.torch import save_file

from onp.attack.triggers import TRIGGERS, load_trigger
from onp.errors import InputError

pytestmark = pytest.mark.usefixtures("small_generators")


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


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger_survives_its_file(name, tmp_path):
    trigger = trigger_for(name)
    trigger.save(tmp_path / "trigger.safetensors")
    again = load_trigger(tmp_path / "trigger.safetensors")
    before = images()
    assert type(again) is type(trigger) and torch.equal(again(before), trigger(before))


@pytest.mark.parametrize("name", sorted(FITTED))
def test_fitted_triggers_cannot_be_drawn(name):
    with pytest.raises(InputError, match="fitted"):
        TRIGGERS[name].make((3, 32, 32), torch.Generator())


@pytest.mark.parametrize("name", sorted(set(TRIGGERS) - {"bpp", "filter"}))
def test_wrong_image_size_is_refused(name):
    with pytest.raises(InputError, match="trigger"):
        trigger_for(name)(images(2, (1, 2, 2)))


@pytest.mark.parametrize("content", [b"", b"not a trigger", b"\x00" * 64])
def test_a_file_that_is_no_trigger_is_refused(content, tmp_path):
    (tmp_path / "trigger.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"trigger\.safetensors"):
        load_trigger(tmp_path / "trigger.safetensors")


@pytest.mark.parametrize("name", ["ssba", "input_aware"])
def test_a_generator_with_missing_weights_is_refused(name, tmp_path):
    path = tmp_path / "trigger.safetensors"
    trigger_for(name).save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.endswith("up.1.0.weight")}  # noqa: SIM118
        metadata = file.metadata()
    assert json.loads(metadata["onp.scalars"]).keys() == ({"amount"} if name == "ssba" else set())
    save_file(tensors, str(path), metadata)
    with pytest.raises(InputError, match=r"trigger\.safetensors"):
        load_trigger(path)


def test_a_missing_trigger_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trigger file"):
        load_trigger(tmp_path / "none.safetensors")


def test_a_trigger_of_an_unknown_kind_is_said_to_be_one(tmp_path):
    save_file({"pattern": torch.zeros(1)}, str(tmp_path / "t.safetensors"), {"onp.trigger": "laser", "onp.scalars": "{}"})
    with pytest.raises(InputError, match="of the unknown kind 'laser'"):
        load_trigger(tmp_path / "t.safetensors")
